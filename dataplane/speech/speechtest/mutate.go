package speechtest

import (
	"math/rand/v2"

	"bocage.dev/bocage/dataplane/speech"
)

// Mutate draws something near a capture: a few of its bytes are
// changed, it is cut, or it is taken for the other side or the other transport.
func Mutate(random *rand.Rand, captures []Capture) speech.Heard {
	sides := captures[random.IntN(len(captures))].Sides()
	h := sides[random.IntN(len(sides))]
	h.Bytes = append([]byte{}, h.Bytes...)
	for range random.IntN(4) {
		at := random.IntN(len(h.Bytes))
		if random.IntN(2) == 0 {
			at = random.IntN(min(len(h.Bytes), 16))
		}
		switch random.IntN(5) {
		case 0:
			h.Bytes[at] ^= 1 << random.IntN(8)
		case 1:
			h.Bytes[at] = []byte{0, 1, 0x7f, 0x80, 0xff, ' ', '\r', '\n', '/'}[random.IntN(9)]
		case 2:
			h.Bytes[at]++
		case 3:
			h.Bytes[at]--
		default:
			h.Bytes[at] = byte(random.Uint32())
		}
	}
	for random.IntN(4) == 0 && len(h.Bytes) < speech.Window {
		h.Bytes = append(h.Bytes, byte(random.Uint32()))
	}
	if random.IntN(3) == 0 {
		h.Bytes = h.Bytes[:random.IntN(len(h.Bytes)+1)]
	}
	switch random.IntN(12) {
	case 0:
		h.Answers = !h.Answers
	case 1:
		h.Asked = h.Asked[:random.IntN(len(h.Asked)+1)]
	case 2:
		h.Datagram = 0
	case 3:
		h.Datagram = len(h.Bytes) + random.IntN(3)
	}
	if h.Datagram > 0 {
		h.Datagram = max(h.Datagram, len(h.Bytes))
		if random.IntN(4) == 0 {
			h.Datagram = max(1, len(h.Bytes)) // cut to what is there
		}
	}
	return h
}
