"""BLAKE3 values of parts of a file, written from the BLAKE3 paper, section 2.

`extended_client.py` needs the tree of the hash (docs/PROTOCOL.md, "Manifest"), not only its root.
Python's standard library does not have BLAKE3. To hash 16 chunks in the time of about two, one
large integer holds the same word of all of them: that of chunk *i* is in the 64 bits from 64 * i
on, of which 32 are used.
"""

IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB,
      0x5BE0CD19)
PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
# The words that each of the eight steps of a round mixes: four columns, four diagonals.
STEPS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
         (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))
CHUNK_START, CHUNK_END, PARENT, ROOT = 1, 2, 4, 8
CHUNK, BLOCK = 1024, 64


def lanes(numbers):
    """Returns an integer that holds these 32-bit numbers."""
    return int.from_bytes(b"".join(number.to_bytes(8, "little") for number in numbers), "little")


def compress(state, words, counters, length, flags):
    """Compresses a block of each lane. `words` are the 16 words of the blocks."""
    count = len(counters)
    ones = lanes([1] * count)
    mask = ones * 0xFFFFFFFF
    low, high = (lanes([(c >> shift) & 0xFFFFFFFF for c in counters]) for shift in (0, 32))
    v = [*state, *(ones * word for word in IV[:4]), low, high, ones * length, ones * flags]

    def turn(x, bits):
        return (x >> bits | x << 32 - bits) & mask

    for _ in range(7):
        for step, (a, b, c, d) in enumerate(STEPS):
            v[a] = v[a] + v[b] + words[2 * step] & mask
            v[d] = turn(v[d] ^ v[a], 16)
            v[c] = v[c] + v[d] & mask
            v[b] = turn(v[b] ^ v[c], 12)
            v[a] = v[a] + v[b] + words[2 * step + 1] & mask
            v[d] = turn(v[d] ^ v[a], 8)
            v[c] = v[c] + v[d] & mask
            v[b] = turn(v[b] ^ v[c], 7)
        words = [words[at] for at in PERMUTATION]
    return [v[at] ^ v[at + 8] for at in range(8)]


def chunks(parts, first, root):
    """Returns the values of chunks of equal length, the first of which has the number `first`."""
    ones = lanes([1] * len(parts))
    counters = range(first, first + len(parts))
    state = [ones * word for word in IV]
    blocks = max(-(-len(parts[0]) // BLOCK), 1)
    for block in range(blocks):
        begin = block * BLOCK
        own = [part[begin:begin + BLOCK] for part in parts]
        length = len(own[0])
        own = [part.ljust(BLOCK, b"\0") for part in own]
        words = [lanes([int.from_bytes(part[at:at + 4], "little") for part in own])
                 for at in range(0, BLOCK, 4)]
        flags = CHUNK_START * (block == 0) | (CHUNK_END | ROOT * root) * (block == blocks - 1)
        state = compress(state, words, counters, length, flags)
    words = [word.to_bytes(8 * len(parts), "little") for word in state]
    return [b"".join(word[at:at + 4] for word in words) for at in range(0, 8 * len(parts), 8)]


def parent(left, right, root):
    """Returns the value of the subtree that consists of two others."""
    both = left + right
    words = [int.from_bytes(both[at:at + 4], "little") for at in range(0, BLOCK, 4)]
    state = compress(list(IV), words, [0], BLOCK, PARENT | ROOT * root)
    return b"".join(word.to_bytes(4, "little") for word in state)


def merge(values, root=False):
    """Returns the value of the subtree that consists of these, all of equal size but the last."""
    if len(values) == 1:
        return values[0]
    left = 1 << (len(values) - 1).bit_length() - 1
    return parent(merge(values[:left]), merge(values[left:]), root)


def value(content, offset=0, root=False):
    """Returns the value of the part `content` of a file, which begins at `offset`.

    `root`: the part is the whole file, so that its value is the hash.
    """
    first, whole = offset // CHUNK, len(content) // CHUNK * CHUNK
    parts = [content[at:at + CHUNK] for at in range(0, whole, CHUNK)]
    is_only = root and len(content) <= CHUNK
    values = chunks(parts, first, is_only) if parts else []
    if whole < len(content) or not content:
        values += chunks([content[whole:]], first + len(parts), is_only)
    return merge(values, root)
