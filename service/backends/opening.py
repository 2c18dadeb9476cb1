"""A package's settings -> the backend that serves it, in this process or on Triton."""

from model_def.config import PackageConfig
from service.backends import inprocess
from service.backends.generation import LoadedBackend
from service.errors import BadSetting
from service.settings import ModelSettings


def open_model(settings: ModelSettings) -> tuple[PackageConfig, LoadedBackend]:
    """Open a package, its hashes verified, and the backend that will load its engine. Raises
    BadSetting naming the file that cannot be used."""
    if settings.backend == "inprocess":
        return inprocess.open_model(settings)
    # Imported where it is asked for: gRPC takes a third of a second and 20 MB.
    from engine_build.runtime.package import PackageError, open_package
    from service.backends.triton import TritonBackend

    try:
        package = open_package(settings.package)
    except PackageError as error:
        raise BadSetting(str(error)) from None
    if settings.engine not in package.manifests:
        raise BadSetting(
            f"{settings.package}: has no {settings.engine} engine, only {sorted(package.manifests)}"
        )
    backend = TritonBackend(
        package,
        settings.engine,
        settings.triton,
        queue=settings.queue,
        http=settings.triton_http,
        shared_requests=settings.shared_requests,
    )
    return package.config, backend
