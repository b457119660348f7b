"""The tables of extension points: what a key of the run configuration can name.

A table says of each member where its factory is, what it is in one line, which options its factory
takes, and which settings rule it out. It imports no factory, and so none of what factories need,
until a member is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from pfl_flower.support.errors import ConfigError, DataError
from pfl_flower.support.options import Options, parse_options, signature_options
from pfl_flower.support.plugins import find, is_plugin, told
from pfl_flower.support.run_settings import RunSettings

PATH = ":PATH"
"""The end of a member's name where the value ends in a path of the user's."""


class Refusal(NamedTuple):
    """Why settings are refused: the key that is at fault, and what would be right."""

    key: str
    right: str


def always(settings: RunSettings) -> Refusal | None:
    """Admit all settings."""
    return None


@dataclass(frozen=True, kw_only=True)
class Extension:
    """A member of a table.

    Attributes
    ----------
    factory : str
        What makes it, as ``package.module:Name``; empty in the row of members of one's own.
    text : str
        What it is, in one line.
    source : str
        Where it comes from, such as ``Yin et al. 2018``.
    options : type of Options
        The factory's parameters that no key sets, with their types and meanings.
    reads : tuple of str
        Keys that have a meaning for this member and not for all the others of its table.
    admits : callable
        From the settings of a run to the reason why this member cannot serve it, or None. A refusal
        of the table's own key says ``for ...``: the members that would do are named before it.
    """

    factory: str = ""
    text: str
    source: str = ""
    options: type[Options] = Options
    reads: tuple[str, ...] = ()
    admits: Callable[[RunSettings], Refusal | None] = always

    @property
    def cited(self) -> str:
        """The source in brackets, after a blank; nothing without one."""
        return f" ({self.source})" if self.source else ""


Row = TypeVar("Row", bound=Extension)


class Table(Mapping[str, Row]):
    """The members of one extension point, by the name that its key of the run configuration takes.

    Parameters
    ----------
    point : str
        The key. Its options are in the key ``POINT-options``.
    rows : mapping
        The members. A name that ends in ``:PATH`` takes a path there.
    own : Row
        What is so of members of one's own: ``text`` says what they are, and where.
    passed : sequence of str
        What a factory is called with, in order.
    keyed : mapping
        Keywords that the program gives a factory, and the key that each comes from.
    """

    def __init__(
        self,
        point: str,
        rows: Mapping[str, Row],
        *,
        own: Row,
        passed: Sequence[str] = (),
        keyed: Mapping[str, str] | None = None,
    ) -> None:
        self.point, self.own, self.passed, self.keyed = point, own, tuple(passed), keyed or {}
        self._rows = dict(rows)

    def __getitem__(self, name: str) -> Row:
        """Return the row of a member's name."""
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, in the order in which they are listed."""
        return iter(self._rows)

    def __len__(self) -> int:
        """Return the number of members."""
        return len(self._rows)

    @property
    def described(self) -> str:
        """What the key takes: all names, and what may be one's own."""
        return f"{', '.join(self)}, or {self.own.text}"

    def row(self, value: str) -> Row:
        """Return the row of the key's value, ``own`` for what is not in the table.

        Raises
        ------
        ConfigError
            If the value is neither a name nor the form of one's own.
        """
        if value in self._rows and not value.endswith(PATH):
            return self._rows[value]
        kind, _, path = value.partition(":")
        if path and kind + PATH in self._rows:
            return self._rows[kind + PATH]
        if is_plugin(value):
            return self.own
        raise ConfigError(f"{self.point} = {value}: expected {self.described}")

    def refusal(self, value: str, settings: RunSettings) -> Refusal | None:
        """Return why the member cannot serve a run with these settings, None if it can."""
        found = self.row(value).admits(settings)
        if found is None or found.key != self.point:
            return found
        others = [name for name, row in self.items() if row.admits(settings) is None]
        return Refusal(self.point, f"{', '.join(others)}, {found.right}")

    def readers(self, key: str) -> tuple[str, ...]:
        """Return the names of the members that read a key which the others do not."""
        return tuple(name for name, row in self.items() if key in row.reads)

    def check(self, value: str, options: str) -> None:
        """Refuse an unknown name, and options that are wrong as far as can be told without import.

        Raises
        ------
        ConfigError
            One line that names the key, the value and what would be right.
        """
        row = self.row(value)
        parse_options(f"{self.point}-options", options, None if row is self.own else row.options)

    def load(self, value: str) -> Callable[..., Any]:
        """Return the factory.

        Raises
        ------
        ConfigError
            If there is no such member, or it cannot be imported.
        """
        return find(self.point, value, self.row(value).factory or value)

    def options(self, value: str, text: str) -> dict[str, Any]:
        """Return the options in ``text``, JSON, checked: those of one's own by its signature.

        Raises
        ------
        ConfigError
            If there is no such member, an option is unknown or wrong, or one is missing.
        """
        row, key = self.row(value), f"{self.point}-options"
        if row is not self.own:
            return parse_options(key, text, row.options)
        factory = self.load(value)
        model = signature_options(factory, self.passed, tuple(self.keyed))
        if model is None:
            called = f"{', '.join(self.passed)}" or "nothing but keywords"
            raise ConfigError(f"{self.point} = {value}: expected a class or a function of {called}")
        return parse_options(key, text, model, keyed=self.keyed)

    def make(self, value: str, options: str, *passed: Any, **keyed: Any) -> Any:
        """Return what the factory makes of ``passed``, ``keyed`` and the options.

        Raises
        ------
        ConfigError
            As ``options``; or if a factory of one's own raises anything, with its file and line.
        """
        factory, chosen = self.load(value), self.options(value, options)
        if self.row(value) is not self.own:
            return factory(*passed, **keyed, **chosen)
        try:
            return factory(*passed, **keyed, **chosen)
        except (ConfigError, DataError):
            raise
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"{self.point} = {value}: expected a factory that works ({told(error)})"
            ) from error

    def expect(self, value: str, made: object, kind: type) -> None:
        """Refuse what a factory made if it is of another kind.

        Raises
        ------
        ConfigError
            One line that names both kinds.
        """
        if not isinstance(made, kind):
            raise ConfigError(
                f"{self.point} = {value}: expected a {kind.__module__}.{kind.__name__}, "
                f"and it made a {type(made).__name__}"
            )
