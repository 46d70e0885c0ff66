package silence

import (
	"crypto/sha256"
	"encoding/json"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/recognition/account"
	"bocage.dev/bocage/recognition/evidence"
)

var start = time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)

// story makes batches 1 to n of one boot, chained as an agent does.
func story(n int, boot, title string) []*bocage.Batch {
	var out []*bocage.Batch
	var previous []byte
	for i := range n {
		b := &bocage.Batch{Source: "spiffe://bocage.test/agent/h1", Boot: boot, Sequence: uint64(i + 1), Previous: previous, Sent: start,
			Inspections: []bocage.InspectionEvent{{Time: start, Title: title}}}
		encoded, _ := json.Marshal(b)
		sum := sha256.Sum256(encoded)
		previous = sum[:]
		out = append(out, b)
	}
	return out
}

func kinds(all []evidence.Item) map[string]int {
	out := map[string]int{}
	for _, item := range all {
		out[item.Kind]++
	}
	return out
}

func TestBatches(t *testing.T) {
	honest, forged := story(8, "b", "one"), story(8, "b", "other")
	binary := story(8, "b", "not utf-8: \xff")
	for name, test := range map[string]struct {
		batches []*bocage.Batch
		fresh   int
		want    map[string]int
	}{
		"in order":                       {honest, 8, nil},
		"each twice":                     {append(append([]*bocage.Batch{}, honest...), honest...), 8, nil},
		"backwards":                      {[]*bocage.Batch{honest[5], honest[4], honest[3], honest[2]}, 4, nil},
		"one late":                       {[]*bocage.Batch{honest[0], honest[2], honest[1], honest[3]}, 4, nil},
		"two missing":                    {[]*bocage.Batch{honest[0], honest[3]}, 2, map[string]int{KindGap: 1}},
		"begun in the middle":            {honest[4:], 4, nil},
		"another boot":                   {append(append([]*bocage.Batch{}, honest...), story(3, "c", "x")...), 11, nil},
		"one number twice":               {append(append([]*bocage.Batch{}, honest...), forged[4]), 8, map[string]int{KindFork: 1}},
		"the rest rewritten":             {append(append([]*bocage.Batch{}, honest[:4]...), forged[4]), 5, map[string]int{KindFork: 1}},
		"bytes that JSON cannot repeat":  {binary, 8, nil},
		"a source that chains otherwise": {unchained(honest), 8, nil},
	} {
		d := New()
		var got []evidence.Item
		emit := func(item evidence.Item) { got = append(got, item) }
		fresh := 0
		for _, b := range test.batches {
			// As it arrives: through JSON.
			encoded, _ := json.Marshal(b)
			var copied bocage.Batch
			if err := json.Unmarshal(encoded, &copied); err != nil {
				t.Fatal(err)
			}
			if d.Batch(&copied, start, emit) == account.Fresh {
				fresh++
			}
		}
		d.Tick(start.Add(patience-time.Second), emit)
		if found := kinds(got); found[KindGap] > 0 {
			t.Errorf("%s: impatient", name)
		}
		d.Tick(start.Add(patience), emit)
		d.Tick(start.Add(2*patience), emit)
		found := kinds(got)
		if fresh != test.fresh || len(found) != len(test.want) {
			t.Errorf("%s: %d fresh, evidence %v", name, fresh, found)
		}
		for kind, n := range test.want {
			if found[kind] != n {
				t.Errorf("%s: %d of %s", name, found[kind], kind)
			}
		}
	}
}

func unchained(batches []*bocage.Batch) []*bocage.Batch {
	var out []*bocage.Batch
	for _, b := range batches {
		copied := *b
		copied.Previous = []byte("something else")
		out = append(out, &copied)
	}
	return out
}

func TestSilentAgent(t *testing.T) {
	d := New()
	var got []evidence.Item
	emit := func(item evidence.Item) { got = append(got, item) }
	d.Seen("h1", start, emit) // never sent anything
	for _, b := range story(3, "b", "x") {
		d.Batch(b, start, emit)
	}
	d.Seen("h1", start.Add(SilentAfter), emit)
	if len(got) != 0 {
		t.Fatalf("evidence too early: %v", got)
	}
	d.Seen("h1", start.Add(SilentAfter+time.Second), emit)
	d.Seen("h1", start.Add(SilentAfter+time.Minute), emit)
	if found := kinds(got); len(got) != 1 || found[KindSilent] != 1 || got[0].Decisive {
		t.Errorf("evidence: %v", got)
	}
}
