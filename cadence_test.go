package bocage

import (
	"bytes"
	"testing"
	"time"
)

// What is read is written again as it was, and nothing else is read.
func FuzzCadence(f *testing.F) {
	c := Cadence{Flow: FlowEvent{Kind: EventCadence, Time: time.Unix(0, 1).UTC(), Packets: 3}, GapBeats: 7, GapSquares: 9, Alike: 2}
	c.Gaps[1][9], c.Sizes[1][3] = 5, 6
	record, _ := c.AppendBinary(nil)
	f.Add(record)
	f.Add(record[:len(record)-1])
	f.Add(make([]byte, CadenceSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		var c Cadence
		if c.UnmarshalBinary(b) != nil {
			return
		}
		again, err := c.AppendBinary(nil)
		if err != nil || len(again) != CadenceSize || !bytes.Equal(again[FlowEventSize:], b[FlowEventSize:]) {
			t.Fatalf("%x became %x: %v", b, again, err)
		}
		if mean, deviation := c.Gap(); mean < 0 || deviation < 0 {
			t.Fatalf("a gap of %s, give or take %s", mean, deviation)
		}
	})
}

func TestCadenceMeasures(t *testing.T) {
	var c Cadence
	if mean, deviation := c.Gap(); mean != 0 || deviation != 0 {
		t.Errorf("nothing has a gap of %s, give or take %s", mean, deviation)
	}
	c.Gaps[0][2], c.Gaps[1][2] = 3, 1
	c.GapBeats, c.GapSquares, c.Alike, c.AlikeSizes = 4*300, 4*300*300, 3, 0
	if all, by := c.Count(); all != 4 || by != [2]int{3, 1} {
		t.Errorf("%d gaps, by side %v", all, by)
	}
	if mean, deviation := c.Gap(); mean != 300*CadenceBeat || deviation != 0 {
		t.Errorf("a gap of %s, give or take %s", mean, deviation)
	}
	if gaps, sizes := c.Regularity(); gaps != 1 || sizes != 0 {
		t.Errorf("regular: %f %f", gaps, sizes)
	}
}
