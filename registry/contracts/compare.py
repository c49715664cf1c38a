"""What one schema sends that another does not take: every difference with its place, and whether it is proven.

Callers send an operation's old input to the new one, and the new output to those who know the old. Nothing found means
proven: whatever the sender's schema admits, the taker's does. Objects are taken as people mean them: properties that
are not declared are not sent, unless `additionalProperties` or a pattern says that others are. Where a recursive schema
comes back to a pair that is being compared, the pair is taken to fit, which is sound for finite values.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeAlias

from registry.contracts.cover import Verdict, covers
from registry.contracts.dialect import Place, Schema
from registry.contracts.equal import Equality
from registry.contracts.side import LOCAL, WHOLE, Key, Node, Nodes, Side, key_of, only, types_of

STEPS_MAX: Final = 5_000
REMARKS: Final = ("absent", "undeclared")
"""A property that only the taker declares, and that is never sent; one that only the sender declares."""
_FAR: Final = 1 << 30
_BRANCHING: Final = ("anyOf", "oneOf", "if", "dependentSchemas")
_WITH: Final = {"if": ("if", "then", "else"), "contains": ("contains", "minContains", "maxContains")}


class Difference(NamedTuple):
    """Something that may be sent and is not taken.

    `word`: the taker's keyword, or `value`, `property`, `closed`, `nothing`. `sent`, `taken`: what both sides say
    there; `place`, `at`: where in the sender's and in the taker's document. `proven` False: it could not be shown to
    fit, nor to fail. The two words of REMARKS fit, but what one side declares is nothing to the other.
    """

    word: str
    sent: Any
    taken: Any
    place: Place
    at: Place
    proven: bool


_Pair: TypeAlias = tuple[Key, Place, bool]


class TooComplex(Exception):
    """More steps than STEPS_MAX."""


def compare(sender: Schema, taker: Schema) -> list[Difference]:
    """Differences between two schemas in 2020-12 that were found usable. Raises TooComplex."""
    return _Comparison(Side(sender), Side(taker)).run()


class _Comparison:
    def __init__(self, sender: Side, taker: Side) -> None:
        self._sender = sender
        self._taker = taker
        self._equality = Equality(sender, taker)
        self._known: dict[_Pair, list[Difference]] = {}
        self._open: dict[_Pair, int] = {}
        self._low = _FAR
        """The outermost open pair that was taken to fit since the innermost one was opened."""
        self._left = STEPS_MAX

    def run(self) -> list[Difference]:
        return self._fits(self._sender.nodes(()), ())

    def _step(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise TooComplex

    def _covers(self, wide: Schema, narrow: Schema) -> Verdict:
        self._step()
        return covers(wide, narrow)

    def _fits(self, sent: Nodes | None, at: Place, *, within: bool = False) -> list[Difference]:
        """What of `sent` does not fit; `within`: the place is one of several of the taker that hold together."""
        if sent is None:
            return []
        pair = (key_of(sent), at, within)
        if pair in self._known:
            return self._known[pair]
        if pair in self._open:
            self._low = min(self._low, self._open[pair])
            return []
        self._step()
        depth, outer = len(self._open), self._low
        self._open[pair], self._low = depth, _FAR
        found = _once([*self._walk(sent, at), *([] if within else self._remarks(sent, at))])
        del self._open[pair]
        # What fits only as long as an outer pair does is not known yet.
        if found or self._low >= depth:
            self._known[pair] = found
        self._low = min(outer, self._low if self._low < depth else _FAR)
        return found

    def _walk(self, sent: Nodes, at: Place) -> list[Difference]:
        taken = self._taker.places[at]
        types = types_of(sent)
        if taken is True or not types or any(not one.mark and self._equality.same(one.place, at) for one in sent):
            return []
        if taken is False:
            return [Difference("nothing", None, None, _first(sent), at, proven=True)]
        values = self._sender.values(sent)
        if values is not None:
            refused = [value for value in values if not self._taker.admits(at, value)]
            return [Difference("value", value, taken.get("enum"), _first(sent), at, proven=True) for value in refused]
        for one in sent:
            for word in ("anyOf", "oneOf"):
                if word in one.schema:
                    return self._each(sent, one, word, at)
        found = self._together(sent, taken, at)
        found += self._local(sent, taken, at)
        found += self._whole(sent, taken, at)
        if "object" in types:
            found += self._members(sent, taken, at)
        if "array" in types:
            found += self._items(sent, taken, at)
        return found

    def _each(self, sent: Nodes, one: Node, word: str, at: Place) -> list[Difference]:
        """Every alternative that may be sent."""
        rest = tuple(node.without(word) if node is one else node for node in sent)
        found: list[Difference] = []
        for number in range(len(one.schema[word])):
            branch = self._sender.nodes((*one.place, word, number))
            if branch is not None:
                found += self._fits((*rest, *branch), at)
        return found

    def _together(self, sent: Nodes, taken: dict[str, Any], at: Place) -> list[Difference]:
        """Subschemas of the taker that see the same value."""
        leads = self._taker.target(taken)
        found = [*self._fits(sent, leads, within=True)] if leads is not None else []
        for number in range(len(taken.get("allOf", ()))):
            found += self._fits(sent, (*at, "allOf", number), within=True)
        for word in ("anyOf", "oneOf"):
            if word in taken:
                found += self._alternatives(sent, at, word, len(taken[word]))
        return found

    # Alternatives of the taker ------------------------------------------------------------------------------------

    def _alternatives(self, sent: Nodes, at: Place, word: str, count: int) -> list[Difference]:
        places: list[Place] = [(*at, word, number) for number in range(count)]
        tried = {place: self._fits(sent, place) for place in places}
        fitting = [place for place in places if not _misfits(tried[place])]
        chosen = [place for place in fitting if word == "anyOf" or self._alone(sent, place, places)]
        if chosen:
            return min((tried[place] for place in chosen), key=len)
        types = types_of(sent)
        kinds = sorted(types - {"integer"} if "number" in types else types)
        if len(kinds) > 1:
            return [one for kind in kinds for one in self._alternatives((*sent, only(kind)), at, word, count)]
        verdict = self._covers(self._taker.words(at, word), self._sender.whole(sent))
        if verdict is Verdict.YES:
            return []
        meant = [place for place in places if not self._apart(sent, place)]
        if len(meant) == 1 and _misfits(tried[meant[0]]):
            return tried[meant[0]]
        each = all(any(one.proven for one in found) for found in tried.values())
        proven = not meant or (verdict is Verdict.NO and each)
        return [Difference(word, kinds[0], count, _first(sent), at, proven=proven)]

    def _alone(self, sent: Nodes, chosen: Place, places: list[Place]) -> bool:
        """Whether what is sent can match no other alternative."""
        return all(place == chosen or self._apart(sent, place) for place in places)

    def _apart(self, sent: Nodes, at: Place) -> bool:
        """Whether nothing that is sent matches the taker's subschema: other types, or another constant."""
        theirs = self._taker.nodes(at)
        if theirs is None or not types_of(sent) & types_of(theirs):
            return True
        if types_of(sent) & types_of(theirs) != frozenset({"object"}):
            return False
        both = [name for name in self._taker.declared(theirs) if name in self._sender.declared(sent)]
        return any(self._never(sent, theirs, name) for name in both if _required(name, (*sent, *theirs)))

    def _never(self, sent: Nodes, theirs: Nodes, name: str) -> bool:
        """Whether no value of the property `name` that is sent is one of theirs."""
        ours = self._sender.nodes(*self._sender.member(sent, name))
        values = self._sender.values(ours) if ours is not None else []
        if values is None:
            return False
        places = self._taker.member(theirs, name)
        return all(any(not self._taker.admits(place, value) for place in places) for value in values)

    # Keywords -----------------------------------------------------------------------------------------------------

    def _local(self, sent: Nodes, taken: dict[str, Any], at: Place) -> list[Difference]:
        found: list[Difference] = []
        ours = self._sender.local(sent)
        more = any(word in node.schema for node in sent for word in WHOLE)
        for word in LOCAL:
            for wanted in _singly(word, taken):
                verdict = self._covers(wanted, ours)
                if verdict is not Verdict.YES and more:
                    verdict = self._covers(wanted, self._sender.whole(sent))
                if verdict is Verdict.UNKNOWN and word == "type" and types_of(sent) - types_of((Node(wanted, at),)):
                    verdict = Verdict.NO
                if verdict is not Verdict.YES:
                    said = next((node for node in sent if word in node.schema), None)
                    mine = said.schema[word] if said is not None else None
                    place = said.place if said is not None else _first(sent)
                    found.append(Difference(word, mine, wanted[word], place, at, proven=verdict is Verdict.NO))
        if "format" in taken and "string" in types_of(sent):
            formats = [node.schema["format"] for node in sent if "format" in node.schema]
            if taken["format"] not in formats:
                mine = formats[0] if formats else None
                found.append(Difference("format", mine, taken["format"], _first(sent), at, proven=False))
        return found

    def _whole(self, sent: Nodes, taken: dict[str, Any], at: Place) -> list[Difference]:
        found: list[Difference] = []
        for word in WHOLE:
            if word not in taken:
                continue
            words = tuple(taken) if word.startswith("unevaluated") else _WITH.get(word, (word,))
            if any(not node.mark and self._equality.under(node.place, at, *words) for node in sent):
                continue
            verdict = self._covers(self._taker.words(at, *words), self._sender.whole(sent))
            if verdict is not Verdict.YES:
                proven = verdict is Verdict.NO and not word.startswith("unevaluated")
                found.append(Difference(word, None, None, _first(sent), at, proven=proven))
        return found

    # Parts --------------------------------------------------------------------------------------------------------

    def _members(self, sent: Nodes, taken: dict[str, Any], at: Place) -> list[Difference]:
        found: list[Difference] = []
        theirs = (Node(taken, at),)
        listed, rest = self._sender.declared(sent), self._sender.rest(sent)
        for name in listed:
            places = self._sender.member(sent, name)
            for place in self._taker.member(theirs, name):
                found += self._member(name, places, place)
        for pattern, place in self._sender.patterns(sent):
            found += self._matching(pattern, place, listed, taken, at)
        if rest.possible:
            found += self._others(sent, rest.places, taken, at)
        elif rest.assumed and taken.get("additionalProperties") is False:
            found.append(Difference("closed", None, None, _first(sent), at, proven=False))
        return found

    def _matching(
        self, pattern: str, place: Place, listed: dict[str, None], taken: dict[str, Any], at: Place
    ) -> list[Difference]:
        """Properties whose names match a pattern of the sender."""
        named = [one for one in taken.get("properties", ()) if one not in listed and self._sender.matches(pattern, one)]
        found = [one for name in named for one in self._member(name, (place,), (*at, "properties", name))]
        patterns = dict(self._taker.patterns((Node(taken, at),)))
        if pattern in patterns:
            return found + self._member(pattern, (place,), patterns[pattern])
        # Which names match both patterns, or none of theirs, is not known.
        others = [*patterns.values(), *_additional(taken, at)]
        return found + [one._replace(proven=False) for to in others for one in self._member(pattern, (place,), to)]

    def _others(self, sent: Nodes, places: tuple[Place, ...], taken: dict[str, Any], at: Place) -> list[Difference]:
        """Properties that the sender neither lists nor has a pattern for."""
        listed, patterns = self._sender.declared(sent), dict(self._sender.patterns(sent))
        names = [
            name
            for name in taken.get("properties", ())
            if name not in listed and not any(self._sender.matches(pattern, name) for pattern in patterns)
        ]
        to: list[Place] = [(*at, "properties", name) for name in names]
        to += [place for pattern, place in self._taker.patterns((Node(taken, at),)) if pattern not in patterns]
        return [one for place in [*to, *_additional(taken, at)] for one in self._member("*", places, place)]

    def _remarks(self, sent: Nodes, at: Place) -> list[Difference]:
        theirs = self._taker.nodes(at)
        if theirs is None or "object" not in types_of(sent) & types_of(theirs):
            return []
        if any(word in node.schema for node in (*sent, *theirs) for word in _BRANCHING):
            return []
        mine, yours = self._sender.declared(sent), self._taker.declared(theirs)
        if not mine or not yours:
            return []
        found: list[Difference] = []
        if not self._sender.rest(sent).possible:
            never = [name for name in yours if not self._sender.member(sent, name) and not _required(name, theirs)]
            found = [Difference("absent", None, name, _first(sent), at, proven=True) for name in never]
        if self._taker.rest(theirs).assumed:
            passed = [
                (name, self._sender.member(sent, name)[0]) for name in mine if not self._taker.member(theirs, name)
            ]
            found += [Difference("undeclared", name, None, place, at, proven=False) for name, place in passed]
        return found

    def _member(self, name: str, places: tuple[Place, ...], at: Place) -> list[Difference]:
        """A property that may be sent, at a place of the taker."""
        sent = self._sender.nodes(*places)
        if sent is not None and self._taker.places[at] is False:
            return [Difference("property", name, None, places[0] if places else (), at, proven=True)]
        return self._fits(sent, at)

    def _items(self, sent: Nodes, taken: dict[str, Any], at: Place) -> list[Difference]:
        found: list[Difference] = []
        theirs = (Node(taken, at),)
        most = min((node.schema["maxItems"] for node in sent if "maxItems" in node.schema), default=_FAR)
        first = max(len(node.schema.get("prefixItems", ())) for node in (*sent, *theirs))
        for number in (*range(min(first, int(most))), None):
            item = self._sender.nodes(*self._sender.item(sent, number))
            if item is None:
                break  # no item can stand here, and none behind it
            if number is not None or most > first:
                for place in self._taker.item(theirs, number):
                    found += self._fits(item, place)
        return found


def _misfits(found: list[Difference]) -> list[Difference]:
    return [one for one in found if one.word not in REMARKS]


def _additional(taken: dict[str, Any], at: Place) -> list[Place]:
    return [(*at, "additionalProperties")] if "additionalProperties" in taken else []


def _singly(word: str, taken: dict[str, Any]) -> list[dict[str, Any]]:
    """One keyword, property by property where it demands several."""
    if word not in taken:
        return []
    if word == "required":
        return [{"required": [name]} for name in taken["required"]]
    return [{word: taken[word]}]


def _required(name: str, nodes: Nodes) -> bool:
    return any(name in node.schema.get("required", ()) for node in nodes)


def _first(sent: Nodes) -> Place:
    return next((node.place for node in sent if not node.mark.startswith(":")), ())


def _once(found: list[Difference]) -> list[Difference]:
    return list({repr(one): one for one in found}.values())
