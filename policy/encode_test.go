package policy

import (
	"encoding/json"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
)

// TestEncodeIsJSON writes rulesets in pieces, plain and compressed: what is read
// back is what was cut.
func TestEncodeIsJSON(t *testing.T) {
	for _, n := range []int{0, 10, 3000} {
		in := policytest.Site(n)
		if n == 10 {
			in.Decoys = nil // no wildcards
		}
		rs := compile.Compile(in).Ruleset()
		cutter := compile.NewCutter(rs, in)
		e, err := newEncoder(rs, cutter.Cut, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, host := range append(cutter.Hosts()[:min(2, len(cutter.Hosts()))], "empty") {
			cut := cutter.Cut(host)
			payload, err := e.encode(e.numbered(host, rs.Generation, time.Time{}))
			if err != nil {
				t.Fatal(err)
			}
			if compressed := payload[0] == 0x1f; compressed != (n == 3000) {
				t.Errorf("%d workloads, %s: compressed %v, %d bytes", n, host, compressed, len(payload))
			}
			back, err := DecodeRuleset(payload)
			if err != nil {
				t.Fatalf("%d workloads, %s: %v", n, host, err)
			}
			cut.Digest = back.Digest // of what is in it
			want, got := encoded(t, cut), encoded(t, back)
			if want != got {
				t.Errorf("%d workloads, %s: read back\n%.500s\nwant\n%.500s", n, host, got, want)
			}
		}
	}
}

func encoded(t *testing.T, rs *bocage.Ruleset) string {
	t.Helper()
	b, err := json.Marshal(rs)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func FuzzDecodeRuleset(f *testing.F) {
	in := policytest.Site(20)
	rs := compile.Compile(in).Ruleset()
	e, err := newEncoder(rs, compile.NewCutter(rs, in).Cut, nil)
	if err != nil {
		f.Fatal(err)
	}
	plain, err := e.encode(e.numbered("h0", 1, time.Time{}))
	if err != nil {
		f.Fatal(err)
	}
	small, err := compress(plain)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(plain)
	f.Add(small)
	f.Fuzz(func(t *testing.T, payload []byte) {
		rs, err := DecodeRuleset(payload)
		if err == nil && rs == nil {
			t.Fatal("neither a ruleset nor an error")
		}
	})
}
