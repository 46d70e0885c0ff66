package bocage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"
)

// CadenceSize is the length in bytes of a Cadence on the wire: the 64 of its
// FlowEvent and a histogram of 72.
const CadenceSize = FlowEventSize + 72

// Of a Cadence: octaves of gaps, and classes of size.
const (
	CadenceGaps  = 10
	CadenceSizes = 4
)

// CadenceBeat is the unit in which gaps are measured, and CadenceGap the shortest
// silence that counts as one. What is said between two gaps is a burst.
const (
	CadenceBeat = time.Duration(1 << 22)
	CadenceGap  = 64 * CadenceBeat
)

// Cadence is when a flow that lives for long was silent, and how much was said in
// between: what tells a program that calls home through one open connection from
// a person who types and from a transfer. It is told with every update of a flow
// that goes on and with its end, once there were more than two gaps, and is of all
// that was seen since the flow began: the last one told stands, and those of
// several flows may be added up.
//
// The first index of Gaps and Sizes is who spoke: 0 the flow's source, 1 its
// destination. Counts stay at 65,535 once they are there.
type Cadence struct {
	// Flow says whose cadence it is, with the counters of that moment. Its kind is
	// EventCadence.
	Flow FlowEvent `json:"flow"`
	// Gaps by length, counted for who spoke after it: the first from CadenceGap on,
	// each of the next from twice as long; the last is open.
	Gaps [2][CadenceGaps]uint16 `json:"gaps"`
	// Sizes of bursts, both directions, IP headers included, counted for who spoke
	// first: below 256 bytes, below 4 KiB, below 64 KiB, and more.
	Sizes [2][CadenceSizes]uint16 `json:"sizes"`
	// GapBeats is the sum of all gaps, and GapSquares that of their squares.
	GapBeats   uint32 `json:"gapBeats"`
	GapSquares uint64 `json:"gapSquares"`
	// Alike gaps differ from the gap before by no more than a quarter of the
	// longer, and AlikeSizes bursts from the burst before by no more than a quarter
	// of the larger.
	Alike      uint16 `json:"alike"`
	AlikeSizes uint16 `json:"alikeSizes"`
}

// Count returns how many gaps there were, and of these how many a side ended.
func (c *Cadence) Count() (all int, bySide [2]int) {
	for side := range c.Gaps {
		for _, n := range c.Gaps[side] {
			bySide[side] += int(n)
		}
	}
	return bySide[0] + bySide[1], bySide
}

// Gap returns the mean of the gaps and their standard deviation; zero without any.
func (c *Cadence) Gap() (mean, deviation time.Duration) {
	all, _ := c.Count()
	if all == 0 {
		return 0, 0
	}
	m := float64(c.GapBeats) / float64(all)
	d := math.Sqrt(max(0, float64(c.GapSquares)/float64(all)-m*m))
	return time.Duration(m * float64(CadenceBeat)), time.Duration(d * float64(CadenceBeat))
}

// Regularity is the share of gaps, and of bursts, that are like the one before: near
// 1 of what a clock drives, though it jitters.
func (c *Cadence) Regularity() (gaps, sizes float64) {
	all, _ := c.Count()
	if all < 2 {
		return 0, 0
	}
	return float64(c.Alike) / float64(all-1), float64(c.AlikeSizes) / float64(all-1)
}

// AppendBinary appends the 136-byte record: the flow's 64; at 64 the sum of squares,
// 72 the sum, 76 and 78 what is alike, 80 the gaps, 120 the sizes.
func (c *Cadence) AppendBinary(b []byte) ([]byte, error) {
	le := binary.LittleEndian
	b, err := c.Flow.AppendBinary(b)
	if err != nil {
		return b, err
	}
	b = le.AppendUint64(b, c.GapSquares)
	b = le.AppendUint32(b, c.GapBeats)
	b = le.AppendUint16(b, c.Alike)
	b = le.AppendUint16(b, c.AlikeSizes)
	for side := range c.Gaps {
		for _, n := range c.Gaps[side] {
			b = le.AppendUint16(b, n)
		}
	}
	for side := range c.Sizes {
		for _, n := range c.Sizes[side] {
			b = le.AppendUint16(b, n)
		}
	}
	return b, nil
}

// UnmarshalBinary reads one 136-byte record.
func (c *Cadence) UnmarshalBinary(b []byte) error {
	if len(b) != CadenceSize {
		return fmt.Errorf("cadence of %d bytes: want %d", len(b), CadenceSize)
	}
	*c = Cadence{}
	if err := c.Flow.UnmarshalBinary(b[:FlowEventSize]); err != nil {
		return err
	}
	if c.Flow.Kind != EventCadence {
		return errors.New("cadence: its record says that it is a " + c.Flow.Kind.String())
	}
	le := binary.LittleEndian
	b = b[FlowEventSize:]
	c.GapSquares, c.GapBeats = le.Uint64(b), le.Uint32(b[8:])
	c.Alike, c.AlikeSizes = le.Uint16(b[12:]), le.Uint16(b[14:])
	b = b[16:]
	for side := range c.Gaps {
		for i := range c.Gaps[side] {
			c.Gaps[side][i], b = le.Uint16(b), b[2:]
		}
	}
	for side := range c.Sizes {
		for i := range c.Sizes[side] {
			c.Sizes[side][i], b = le.Uint16(b), b[2:]
		}
	}
	return nil
}
