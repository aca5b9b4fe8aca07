"""What the API server stand-in answers when it refuses: Status objects in a real server's words."""

from __future__ import annotations

from typing import Any, Final

from tests.lab.api_resources import Object, Resource

WATCH_TOO_OLD: Final = "The resourceVersion for the provided watch is too old."
LIST_TOO_OLD: Final = "The resourceVersion for the provided list is too old."
CONTINUE_TOO_OLD: Final = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without"
    " the continue parameter, or use the continue token in this response to retrieve the remainder of the results."
    " Continuing with the provided token results in an inconsistent list - objects that were created, modified, or"
    " deleted between the time the first chunk was returned and now may show up in the list."
)


class ApiError(Exception):
    """An answer that is a refusal; `status` is its body."""

    def __init__(
        self,
        code: int,
        message: str,
        reason: str = "",
        details: Object | None = None,
        headers: dict[str, str] | None = None,
        token: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.headers = headers or {}
        self.status: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {"continue": token} if token else {},
            "status": "Failure",
            "message": message,
        }
        if reason:
            self.status["reason"] = reason
        if details is not None:
            self.status["details"] = details
        self.status["code"] = code


def bad_request(message: str) -> ApiError:
    return ApiError(400, message, "BadRequest")


def unauthorized() -> ApiError:
    return ApiError(401, "Unauthorized", "Unauthorized")


def forbidden(user: str, verb: str, resource: Resource, namespace: str, name: str, subresource: str = "") -> ApiError:
    what = f'{resource.qualified} "{name}"' if name else resource.qualified
    asked = f"{resource.plural}/{subresource}" if subresource else resource.plural
    where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    message = (
        f'{what} is forbidden: User "{user}" cannot {verb} resource "{asked}" in API group "{resource.group}" {where}'
    )
    return ApiError(403, message, "Forbidden", _details(resource, name), {"X-Content-Type-Options": "nosniff"})


def forbidden_path(user: str, verb: str, path: str) -> ApiError:
    message = f'forbidden: User "{user}" cannot {verb} path "{path}"'
    return ApiError(403, message, "Forbidden", {}, {"X-Content-Type-Options": "nosniff"})


def not_found(resource: Resource, name: str) -> ApiError:
    return ApiError(404, f'{resource.qualified} "{name}" not found', "NotFound", _details(resource, name))


def not_allowed() -> ApiError:
    message = "the server does not allow this method on the requested resource"
    return ApiError(405, message, "MethodNotAllowed", {})


def expired(message: str, token: str = "") -> ApiError:
    return ApiError(410, message, "Expired", token=token)


def invalid_options(problem: str) -> ApiError:
    """`problem`: field, what is wrong with it, and why, joined by colons."""
    path, _, rest = problem.partition(": ")
    kind = rest.partition(": ")[0].replace(" value", "").replace("Unsupported", "NotSupported")
    cause = {"reason": f"FieldValue{kind}", "message": rest, "field": path}
    details = {"group": "meta.k8s.io", "kind": "ListOptions", "causes": [cause]}
    return ApiError(422, f'ListOptions.meta.k8s.io "" is invalid: {problem}', "Invalid", details)


def too_many_requests(seconds: int) -> ApiError:
    message = "Too many requests, please try again later."
    return ApiError(
        429, message, "TooManyRequests", {"retryAfterSeconds": seconds}, headers={"Retry-After": str(seconds)}
    )


def internal_error(message: str) -> ApiError:
    details = {"causes": [{"message": message}]}
    return ApiError(500, f"Internal error occurred: {message}", "InternalError", details)


def version_not_a_number(version: str) -> str:
    return f'resourceVersion: Invalid value: "{version}": strconv.ParseUint: parsing "{version}": invalid syntax'


def version_too_large(version: int, current: int) -> ApiError:
    cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    return ApiError(
        504,
        f"Timeout: Too large resource version: {version}, current: {current}",
        "Timeout",
        {"causes": [cause], "retryAfterSeconds": 1},
        {"Retry-After": "1"},
    )


def _details(resource: Resource, name: str) -> Object:
    return {
        **({"name": name} if name else {}),
        **({"group": resource.group} if resource.group else {}),
        "kind": resource.plural,
    }
