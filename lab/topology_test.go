package lab

import (
	"bytes"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/manifest"
)

// What is written for bocage apply reads back as the same workloads, all valid.
func TestWorkloadsReadBack(t *testing.T) {
	l, err := describe(Config{})
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if err := l.WriteWorkloads(&text); err != nil {
		t.Fatal(err)
	}
	documents, faults := manifest.Read("lab.yaml", text.Bytes())
	if err := faults.Err(); err != nil {
		t.Fatalf("%v in\n%s", err, text.String())
	}
	if len(documents) != len(topology) {
		t.Fatalf("%d documents for %d workloads", len(documents), len(topology))
	}
	seen := map[string]bool{}
	for i, d := range documents {
		w := d.Resource.(*bocage.Workload)
		want := l.Workloads()[i]
		if w.Name != want.Name || w.Spec.MAC != want.Spec.MAC || len(w.Spec.Addresses) != 2 {
			t.Errorf("read %+v, want %+v", w, want)
		}
		for _, own := range []string{w.Spec.MAC, w.Spec.Interface, w.Spec.Addresses[0].String(), w.Spec.Addresses[1].String()} {
			if seen[own] {
				t.Errorf("%s is used twice", own)
			}
			seen[own] = true
		}
	}
	if got := l.Address6("users/client").String(); got != "fd77::100" {
		t.Errorf("client is %s, want fd77::100, as it is 10.77.0.100", got)
	}
}

func TestUnusedAddresses(t *testing.T) {
	l, err := describe(Config{})
	if err != nil {
		t.Fatal(err)
	}
	all := l.UnusedAddresses(1000)
	if len(all) != 254-len(topology) {
		t.Errorf("%d unused addresses", len(all))
	}
	for _, a := range all {
		for _, w := range l.Workloads() {
			if w.Spec.Addresses[0] == a {
				t.Errorf("%s is %s's", a, w.Name)
			}
		}
	}
}
