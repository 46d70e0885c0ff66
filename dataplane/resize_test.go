package dataplane

import (
	"strings"
	"testing"
)

// Sizes are given by the names that faults tell, and everything else is refused.
func TestResize(t *testing.T) {
	got, err := Config{Host: "h1"}.Resize(map[string]int{"rules": 1_000_000, "flows": 500_000})
	if err != nil || got.RuleEntries != 1_000_000 || got.FlowEntries != 500_000 || got.PeerEntries != 0 || got.Host != "h1" {
		t.Errorf("%+v, %v", got, err)
	}
	if got := got.withDefaults(); got.FlowsPerPort != 250_000 || got.PeerEntries != 1<<17 {
		t.Errorf("with defaults %+v", got)
	}
	for say, entries := range map[string]map[string]int{
		`there is no table "rule": there are addresses, endings,`: {"rule": 5},
		"0 entries for rules":                      {"rules": 0},
		"-4 entries for rules":                     {"rules": -4},
		"entries for rules 67108865 is not betwee": {"rules": 1<<26 + 1},
	} {
		if _, err := (Config{}).Resize(entries); err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("%v: %v, want %q", entries, err, say)
		}
	}
}
