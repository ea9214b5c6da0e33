"""Near-duplicates: one photo again, but resized, recompressed, mirrored, cropped a little, or brighter or darker.

Each photo is a small grey thumbnail here. Pairs worth a comparison are those whose hashes share a whole key in one of
several tables, so the work grows with the number of photos, not with its square. Each such pair is then laid over
one another (Lucas and Kanade 1981) and compared by its edges, which forgives brightness and little crops but not
another photo of the same thing. Where photos look alike by nature, as those of a fixed camera do, a copy has to be much
more like its original than others are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

VERSION = 1  # of what is found: another one where any of this file's numbers or ways change
THUMB_PX = 32
LEAST_SCORE = 0.87  # chosen on one half of 2,934 flower photos, see benchmarks/planted_faults.py
LEAST_CONTRAST = 3.0  # standard deviation in grey levels: below it a thumbnail is noise
HANDFUL = 6  # photos that may be one photo again, however few others there are
# How much a copy lacks to a score of 1: a part of what those lack that are as much like it as is usual or, where that
# is more, of its square. Chosen by generated photos of fixed cameras and scans, and by digits.
_PART, _PART_OF_SQUARE = 0.05, 0.25
# How much a pixel of a photo saved anew differs at most, as a part of the contrast: JPEG 50 reaches 0.1, JPEG 15 and a
# third of the size 0.2. Two digits differ by 0.46 and more, photos of a burst or a fixed camera by 0.4, and what moves
# by less than a hundredth of the width by 0.17.
_SAVED_ANEW = 0.2
_ASKED = 256  # photos of a class that one is compared with to see what is usual
_MOST_BITS = 12  # of 64 in which two hashes may differ to be compared
_LEAST_ALIKE = 0.3  # of the edges of a pair that is worth being laid over one another
_TABLES = 10
_BUCKET = 64  # photos of one key that a photo is compared with: thousands of like ones must not make millions of pairs
_CHUNK = 1 << 21
_COMPARED = 16  # photos that one is compared with at most
_REJECTED = 4  # times that a photo was like another but did not stand out: the rest of its pairs will not either
_AT_ONCE = 1024
# What is cut away at most, as (part kept, shift) in each direction, shift from -1 (one edge) to 1 (the other).
_CROPS = (
    (1.0, 0.0, 1.0, 0.0),
    (0.96, 0.0, 0.96, 0.0),
    *((0.91, down, 0.91, across) for down in (-0.9, 0.0, 0.9) for across in (-0.9, 0.0, 0.9)),
)
_KEPT = (0.8, 1.03)  # how much smaller one photo's side may be in the other


def thumbnail(photo: Image.Image) -> np.ndarray:
    """What photos are compared by: uint8 (32, 32), grey, its shape not kept."""
    small = photo.resize((THUMB_PX, THUMB_PX), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.asarray(small.convert("L"))


class Alike(NamedTuple):
    """Groups of near-duplicates, by index; and photos that are as alike but do not stand out from others like them."""

    groups: list[list[int]]
    by_nature: list[int]


def most_alike(count: int) -> int:
    """How many of `count` photos may be one photo again, a handful and a tenth; more are alike by nature."""
    return HANDFUL + count // 10


def alike(
    thumbnails: np.ndarray, classes: np.ndarray | None = None, progress: Callable[[int, int], None] | None = None
) -> Alike:
    """Near-duplicates among uint8 (N, 32, 32) thumbnails; `classes`: int (N,), whose photos may be alike by nature.

    `progress` is called with pairs compared (done, total) where there are thousands.
    """
    of = np.zeros(len(thumbnails), np.int64) if classes is None else classes
    found, rejected = _search(thumbnails, of, progress)
    number = np.bincount(of)
    groups, by_nature = [], rejected
    for group in joined(found):
        in_group = np.bincount(of[group], minlength=len(number))
        if len(group) <= most_alike(len(thumbnails)) and (in_group <= HANDFUL + number // 10).all():
            groups.append(group)
            continue
        by_nature.update(group)  # each is like another, as in one long take
        if len(group) < len(thumbnails):
            groups += [[group[k] for k in some] for some in alike(thumbnails[group]).groups]
    return Alike(groups, sorted(by_nature.difference(*groups)))


def copies(thumbnails: np.ndarray) -> list[list[int]]:
    """Of a group of `alike`'s, uint8 (N, 32, 32), those that are one photo again; all of them may be."""
    return joined([*alike(thumbnails).groups, *_saved_anew(thumbnails)])


def _saved_anew(thumbnails: np.ndarray) -> list[list[int]]:
    """Groups of thumbnails that differ from the darkest of the group by next to nothing, whatever others are like."""
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    order = np.argsort(flat.mean(1))
    flat = flat[order]
    mean, most = flat.mean(1), _SAVED_ANEW * flat.std(1)
    coarse = flat.reshape(-1, 4, 8, 4, 8).mean((2, 4)).reshape(-1, 16)  # tells most apart, and quickly
    ends = np.searchsorted(mean, mean + most, side="right")
    groups, left = [], np.ones(len(flat), bool)
    for first in range(len(flat)):
        if left[first]:
            left[first] = False
            near = first + np.flatnonzero(left[first : ends[first]])
            for values in (coarse, flat):
                near = near[np.abs(values[near] - values[first]).max(1) <= most[first]]
            left[near] = False
            groups.append(sorted(order[[first, *near]].tolist()))
    return sorted(group for group in groups if len(group) > 1)


def _search(
    thumbnails: np.ndarray, classes: np.ndarray, progress: Callable[[int, int], None] | None
) -> tuple[list[tuple[int, int]], set[int]]:
    """Pairs of near-duplicates, enough to join all that belong together; photos as alike that do not stand out.

    Photos of hardly any contrast have none. Time and memory grow about as N log N: a photo is compared with the 16
    most like it by their hashes, and not with those that it is joined to already through others.
    """
    if len(thumbnails) < 2:
        return [], set()
    spread = thumbnails.reshape(len(thumbnails), -1).std(1, dtype=np.float32)
    index = np.flatnonzero(spread >= LEAST_CONTRAST)
    if len(index) < 2:
        return [], set()
    thumbs = thumbnails[index]
    usual, rejected = _Usual(thumbs, classes[index]), np.zeros(len(thumbs), np.int64)
    first, second, mirrored, crop = _candidates(thumbs)
    links, found = _Links(), set()
    for start in range(0, len(first), _AT_ONCE):
        part = range(start, min(start + _AT_ONCE, len(first)))
        likely = np.array([k for k in part if links.root(int(first[k])) != links.root(int(second[k]))], np.int64)
        likely = likely[np.minimum(rejected[first[likely]], rejected[second[likely]]) < _REJECTED]
        for rounds, least in ((0, _LEAST_ALIKE), (4, LEAST_SCORE)):  # most are other photos, and seen to be at once
            if len(likely):
                scores = _compare(thumbs, first[likely], second[likely], mirrored[likely], crop[likely], rounds)
                likely, scores = likely[scores >= least], scores[scores >= least]
        if len(likely):
            stands_out = scores >= usual.least(first[likely], second[likely])
            np.add.at(rejected, np.concatenate([first[likely[~stands_out]], second[likely[~stands_out]]]), 1)
            likely = likely[stands_out]
        for k in likely:
            links.join(int(first[k]), int(second[k]))
            one, other = sorted((int(index[first[k]]), int(index[second[k]])))
            found.add((one, other))
        if progress and len(first) > _AT_ONCE:
            progress(part.stop, len(first))
    return sorted(found), {*index[rejected > 0].tolist()}


class _Usual:
    """How alike photos of a class, and of the whole set, usually are: from that, near-duplicates must stand out.

    thumbs: (N, 32, 32). classes: int (N,).
    """

    def __init__(self, thumbs: np.ndarray, classes: np.ndarray) -> None:
        self.thumbs, self.classes = thumbs, classes
        self.known = np.full(len(thumbs), np.nan, np.float32)
        self.asked: dict[int, tuple[int, np.ndarray]] = {}

    def least(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """The score that each of M pairs needs: (M,)."""
        lacking = 1 - np.maximum(self._of(first), self._of(second))
        return 1 - np.maximum(_PART * lacking, _PART_OF_SQUARE * np.square(lacking))

    def _of(self, photos: np.ndarray) -> np.ndarray:
        """How alike each photo's most alike ones are, but for as many as may be copies: (M,) from 0 to 1."""
        new = np.unique(photos[np.isnan(self.known[photos])])
        if len(new):
            self.known[new] = self._among(new, -1)
        for label in np.unique(self.classes[new]).tolist():
            own = new[self.classes[new] == label]
            self.known[own] = np.maximum(self.known[own], self._among(own, label))
        return self.known[photos]

    def _among(self, photos: np.ndarray, label: int) -> np.ndarray:
        """The same among the photos of a class, or for -1 among all."""
        if label not in self.asked:
            members = np.flatnonzero(self.classes == label) if label >= 0 else np.arange(len(self.classes))
            drawn = np.random.default_rng(0).permutation(members)[:_ASKED]
            self.asked[label] = (most_alike(len(members)) * len(drawn) // len(members), _unit_edges(self.thumbs[drawn]))
        rank, others = self.asked[label]
        if rank >= len(others):  # all of them may be
            return np.zeros(len(photos), np.float32)
        scores = _unit_edges(self.thumbs[photos]) @ others.T
        return np.clip(np.partition(scores, -1 - rank, axis=1)[:, -1 - rank], 0, 1)


class _Links:
    """Which numbers are linked, directly or through others."""

    def __init__(self) -> None:
        self.parent: dict[int, int] = {}

    def root(self, node: int) -> int:
        """The number that stands for all that are linked to `node`."""
        parent = self.parent
        while parent.setdefault(node, node) != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    def join(self, one: int, other: int) -> None:
        """Link two numbers."""
        one, other = self.root(one), self.root(other)
        self.parent[max(one, other)] = min(one, other)


def joined(links: Iterable[Sequence[int]]) -> list[list[int]]:
    """Groups of numbers that are linked, directly or through others; each sorted, in order of their first."""
    all_links = _Links()
    for link in links:
        for other in link[1:]:
            all_links.join(link[0], other)
    groups: dict[int, list[int]] = {}
    for node in sorted(all_links.parent):
        groups.setdefault(all_links.root(node), []).append(node)
    return [group for _, group in sorted(groups.items()) if len(group) > 1]


# ---- pairs worth a comparison ----------------------------------------------------------------------------------------
def _candidates(thumbs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Indices of the first and second photo, whether the second is mirrored, and how the first is cropped."""
    count = len(thumbs)
    flat = thumbs.reshape(count, -1).astype(np.float32)
    norm = np.sqrt(np.square(flat - flat.mean(1, keepdims=True)).sum(1, keepdims=True))
    flat /= norm
    plain = flat @ _basis(0)
    odd = np.where(_frequencies()[:, 1] % 2, -1, 1).astype(np.float32)
    middle = np.median(plain, 0)
    middle[odd < 0] = 0  # a photo and its mirror are equally likely
    spread = plain.std(0) + 1e-6
    bits_of_key = max(16, int(np.ceil(np.log2(count))) + 1)
    places = _places(bits_of_key)
    weights = np.zeros((64, _TABLES), np.float32)
    for table, place in enumerate(places):
        weights[place, table] = 1 << np.arange(bits_of_key)
    sides = [_side((values - middle) > 0, weights, bits_of_key) for values in (plain, plain * odd)]
    codes, how = [np.empty(0, np.int64)], [np.empty(0, np.int32)]
    for crop in range(len(_CROPS)):
        values = plain if crop == 0 else flat @ _basis(crop)
        bits = (values - middle) > 0
        hashes = _packed(bits)
        keys = _keys(bits, weights)
        margin = np.abs(values - middle) / spread
        for table, place in enumerate(places):
            of_key = margin[:, place]
            first = of_key.argmin(1)  # the bits that a little change flips
            of_key[np.arange(count), first] = np.inf
            second = of_key.argmin(1)
            for probe in (keys[table], keys[table] ^ (1 << first), keys[table] ^ (1 << second)):
                for mirrored, (stored, order, starts) in enumerate(sides):
                    for i, j in _meet(probe, order[table], starts[table]):
                        keep = i < j if crop == 0 else i != j
                        i, j = i[keep], j[keep]
                        apart = np.bitwise_count(hashes[i] ^ stored[j])
                        near = apart <= _MOST_BITS
                        i, j, apart = i[near], j[near], apart[near]
                        codes.append((mirrored * count + i) * count + j)
                        how.append(apart.astype(np.int32) * len(_CROPS) + crop)
        codes, how = _least(codes, how, count)
    ranks = np.argsort(how[0], kind="stable")
    code, crop_of = codes[0][ranks], how[0][ranks] % len(_CROPS)
    return code // count % count, code % count, code >= count * count, crop_of


def _least(codes: list[np.ndarray], how: list[np.ndarray], count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Each code once, with the least that comes with it; of each first photo only the codes with the least."""
    code, least = np.concatenate(codes), np.concatenate(how)
    order = np.lexsort((least, code))
    code, least = code[order], least[order]
    once = np.flatnonzero(np.diff(code, prepend=-1))
    code, least = code[once], least[once]
    order = np.lexsort((code, least, code // count))
    code, least = code[order], least[order]
    begin = np.flatnonzero(np.diff(code // count, prepend=-1))
    rank = np.arange(len(code)) - np.repeat(begin, np.diff(begin, append=len(code)))
    return [code[rank < _COMPARED]], [least[rank < _COMPARED]]


def _meet(probe: np.ndarray, order: np.ndarray, starts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(index of the probe, index of a photo with its key), some million at a time."""
    begin = starts[probe]
    size = starts[probe + 1] - begin
    number = np.minimum(size, _BUCKET)
    asked = np.flatnonzero(number)
    ends = np.cumsum(number[asked])
    for start in range(0, int(ends[-1]) if len(ends) else 0, _CHUNK):
        low, high = np.searchsorted(ends, (start, start + _CHUNK), side="right")
        some = asked[low:high] if high < len(asked) else asked[low:]
        if not len(some):
            continue
        counts = number[some]
        i = np.repeat(some, counts)
        step = np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts, counts)
        at = (step + i) % size[i] if (size[some] > _BUCKET).any() else step  # in a crowded bucket each begins elsewhere
        yield i, order[begin[i] + at]


def _side(
    bits: np.ndarray, weights: np.ndarray, bits_of_key: int
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Photos that can be asked for: their hashes, and for each table their order by key and where each key begins."""
    order, starts = [], []
    for key in _keys(bits, weights):
        order.append(np.argsort(key, kind="stable"))
        starts.append(np.concatenate([[0], np.cumsum(np.bincount(key, minlength=1 << bits_of_key))]))
    return _packed(bits), order, starts


def _keys(bits: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return (bits.astype(np.float32) @ weights).T.astype(np.int64)  # exact: below 2 ** 24


def _packed(bits: np.ndarray) -> np.ndarray:
    return np.packbits(bits, axis=1).view(np.uint64).ravel()


def _places(bits_of_key: int) -> list[np.ndarray]:
    """Which bits make up the key of each table: drawn once from the 40 of lowest frequency, which change least."""
    rng = np.random.default_rng(0)
    return [np.sort(rng.permutation(40)[:bits_of_key]) for _ in range(_TABLES)]


@functools.cache
def _frequencies() -> np.ndarray:
    """The 64 lowest frequencies (down, across), without (0, 0): int (64, 2)."""
    grid = np.stack(np.meshgrid(np.arange(12), np.arange(12), indexing="ij"), -1).reshape(-1, 2)
    return grid[np.argsort(np.square(grid).sum(1), kind="stable")][1:65]


@functools.cache
def _basis(crop: int) -> np.ndarray:
    """Cosine transform of a cropped thumbnail at 64 frequencies, as one matrix: float32 (1024, 64)."""
    at = (np.arange(THUMB_PX) + 0.5) * np.pi / THUMB_PX
    waves = np.cos(np.arange(12)[:, None] * at)
    kept_y, shift_y, kept_x, shift_x = _CROPS[crop]
    rows, columns = waves @ _sampling(kept_y, shift_y), waves @ _sampling(kept_x, shift_x)
    return np.stack([np.outer(rows[u], columns[v]).ravel() for u, v in _frequencies()], 1).astype(np.float32)


def _sampling(kept: float, shift: float) -> np.ndarray:
    """(32, 32): a row for each pixel of the cropped line, how much of each pixel of the whole it takes."""
    low, part = _where(np.array([kept]), np.array([shift * (1 - kept)]))
    taken = np.zeros((THUMB_PX, THUMB_PX))
    taken[np.arange(THUMB_PX), low[0]] = 1 - part[0]
    taken[np.arange(THUMB_PX), low[0] + 1] += part[0]
    return taken


def _where(scale: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the 32 pixels of M scaled and shifted lines lie: the pixel before, and how far on towards the next."""
    place = ((scale[:, None] * _CENTRES + offset[:, None] + 1) * THUMB_PX - 1) / 2
    place = np.clip(place, 0, THUMB_PX - 1)
    low = np.minimum(place.astype(np.int64), THUMB_PX - 2)
    return low, (place - low).astype(np.float32)


_CENTRES = ((np.arange(THUMB_PX) + 0.5) * 2 / THUMB_PX - 1).astype(np.float32)


# ---- laid over one another -------------------------------------------------------------------------------------------
def _compare(
    thumbs: np.ndarray, first: np.ndarray, second: np.ndarray, mirrored: np.ndarray, crop: np.ndarray, rounds: int
) -> np.ndarray:
    """How alike the edges of each second photo are to those of the first, cropped as fits best: (M,) up to 1."""
    start = np.array(_CROPS)[crop]
    scale = start[:, [0, 2]]
    offset = start[:, [1, 3]] * (1 - scale)
    whole = thumbs[first].astype(np.float32)
    part = thumbs[second].astype(np.float32)
    part[mirrored] = part[mirrored, :, ::-1]
    goal = part.reshape(len(part), -1, 1)
    for _ in range(rounds):
        cut = _cut(whole, scale, offset)
        down, across = np.gradient(cut, axis=(1, 2))
        columns = (down, down * _CENTRES[:, None], across, across * _CENTRES, cut, np.ones_like(cut))
        system = np.stack([column.reshape(len(cut), -1) for column in columns], 2)
        normal = system.transpose(0, 2, 1) @ system
        normal += (1e-4 * np.trace(normal, axis1=1, axis2=2)[:, None, None] / 6 + 1e-3) * np.eye(6, dtype=np.float32)
        solved = np.linalg.solve(normal, system.transpose(0, 2, 1) @ goal)[:, :, 0]
        gain = np.maximum(solved[:, 4], 0.2)[:, None]
        scale = np.clip(scale + np.clip(solved[:, [1, 3]] / gain * 2 / THUMB_PX, -0.05, 0.05), *_KEPT)
        room = np.maximum(1 - scale, 0) + 0.03
        offset = np.clip(offset + np.clip(solved[:, [0, 2]] / gain * 2 / THUMB_PX, -0.05, 0.05), -room, room)
    one, other = _edges(_cut(whole, scale, offset)), _edges(part)
    length = np.sqrt(np.square(one).sum(1) * np.square(other).sum(1))
    return (one * other).sum(1) / np.maximum(length, 1e-6)


def _edges(grey: np.ndarray) -> np.ndarray:
    """How grey changes downward and across, at each pixel of (M, 32, 32): (M, 2048)."""
    return np.concatenate([axis.reshape(len(grey), -1) for axis in np.gradient(grey, axis=(1, 2))], 1)


def _unit_edges(thumbs: np.ndarray) -> np.ndarray:
    edges = _edges(thumbs.astype(np.float32))
    return edges / np.sqrt(np.square(edges).sum(1, keepdims=True)).clip(1e-6)


def _cut(whole: np.ndarray, scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Cut (M, 32, 32) thumbnails to the part that begins and ends where scale and offset (M, 2) say."""
    of = np.arange(len(whole))[:, None]
    for axis in (0, 1):
        low, part = _where(scale[:, axis], offset[:, axis])
        part = part[:, :, None]
        cut = whole[of, low] * (1 - part) + whole[of, low + 1] * part
        whole = np.ascontiguousarray(cut.transpose(0, 2, 1))  # so that whole lines are taken across, too: much faster
    return whole
