package bocage

import (
	"net/netip"
	"testing"
)

func TestColumnValue(t *testing.T) {
	w := &Workload{ObjectMeta: ObjectMeta{Namespace: "shop", Name: "web"}}
	w.Spec.Host = "h1"
	w.Spec.Addresses = []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}
	w.Status.Identity = 17
	w.Status.Conditions = []Condition{{Type: "Ready", Status: "True"}, {Type: "Other", Status: "False"}}
	fields, err := Fields(w)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"spec.host":                "h1",
		"spec.addresses[*]":        "10.0.0.1,fd00::1",
		"status.identity":          "17",
		"status.conditions[Ready]": "True",
		"status.conditions[Gone]":  "",
		"spec.missing.deeper":      "",
		"metadata.name":            "web",
	} {
		if got := (Column{Path: path}).Value(fields); got != want {
			t.Errorf("%s: got %q, want %q", path, got, want)
		}
	}
}
