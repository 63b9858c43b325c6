"""Shapes in signatures. jaxtyping is a development dependency: tests check shapes, elsewhere they are documentation."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
else:
    try:
        from jaxtyping import Bool, Float, Int
    except ModuleNotFoundError:

        class _Shaped:
            def __class_getitem__(cls, item: tuple[object, str]) -> object:
                return item[0]

        Bool = Float = Int = _Shaped

__all__ = ["Bool", "Float", "Int"]
