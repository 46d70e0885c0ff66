package suricata

import (
	"fmt"
	"path/filepath"
	"reflect"
	"testing"
)

func TestPlan(t *testing.T) {
	a, b := profile{Number: 1, Name: "a", Digest: "x"}, profile{Number: 2, Name: "b", Digest: "y"}
	for _, c := range []struct {
		name   string
		wanted []profile
		live   map[uint16]string
		want   string
	}{
		{"nothing", nil, nil, ""},
		{"as it is", []profile{a, b}, map[uint16]string{1: "x", 2: "y"}, ""},
		{"another name only", []profile{{Number: 1, Name: "c", Digest: "x"}}, map[uint16]string{1: "x"}, ""},
		{"all new", []profile{a, b}, nil, "add 1, add 2, "},
		{"changed", []profile{a, b}, map[uint16]string{1: "x", 2: "z"}, "change 2, "},
		{"unsure", []profile{a}, map[uint16]string{1: unsure}, "settle 1, "},
		{"removed, last and in order", []profile{b}, map[uint16]string{9: "x", 1: "x", 4: unsure}, "add 2, remove 1, remove 4, remove 9, "},
	} {
		l := ledger{Wanted: c.wanted, Live: c.live}
		got := ""
		for _, s := range l.plan() {
			got += fmt.Sprintf("%s %d, ", s.verb, s.profile.Number)
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestLedgerIsAboutOneEngine(t *testing.T) {
	a := profile{Number: 1, Name: "a", Digest: "x", Count: 3}
	path := filepath.Join(t.TempDir(), "ledger")
	l := ledger{Wanted: []profile{a}}
	l.started(processID{5, 50})
	if err := l.save(path); err != nil {
		t.Fatal(err)
	}
	again, err := readLedger(path)
	if err != nil || !reflect.DeepEqual(again, l) {
		t.Fatalf("read %+v %v, wrote %+v", again, err, l)
	}
	again.found(processID{5, 50})
	if len(again.plan()) != 0 {
		t.Error("the engine that the ledger is about would be changed")
	}
	again.found(processID{5, 51})
	if steps := again.plan(); len(steps) != 1 || steps[0].verb != stepSettle {
		t.Errorf("another engine: %v", steps)
	}
	if empty, err := readLedger(path + "-absent"); err != nil || empty.Wanted != nil {
		t.Errorf("no ledger: %+v %v", empty, err)
	}
}
