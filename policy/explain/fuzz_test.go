package explain_test

import (
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/explain"
	"bocage.dev/bocage/policy/policytest"
)

// FuzzExplain explains any flow under any objects: it answers, and never panics.
func FuzzExplain(f *testing.F) {
	f.Fuzz(rapid.MakeFuzz(func(t *rapid.T) {
		in := policytest.Draw(t)
		rs, judge := compile.Compile(in).Ruleset(), explain.NewJudge(in)
		address := func(name string) netip.Addr {
			if rapid.Bool().Draw(t, name+" known") {
				return rapid.SampledFrom(policytest.Addresses()).Draw(t, name)
			}
			a, _ := netip.AddrFromSlice(rapid.SliceOfN(rapid.Byte(), 0, 16).Draw(t, name+" bytes"))
			return a.WithZone(rapid.SampledFrom([]string{"", "eth0"}).Draw(t, "zone"))
		}
		flow := bocage.Flow{Source: address("source"), Destination: address("destination"),
			SourcePort: rapid.Uint16().Draw(t, "from port"), DestinationPort: rapid.Uint16().Draw(t, "port"),
			Protocol: bocage.Protocol(rapid.Byte().Draw(t, "protocol")),
			At:       policytest.Now.Add(time.Duration(rapid.Int64Range(-3600, 1<<33).Draw(t, "seconds")) * time.Second)}
		e := judge.Explain(rs, flow)
		if len(e.Layers) == 0 || e.Decider.Kind == "" || e.Missing == "" {
			t.Fatalf("%s: %+v", flow, e)
		}
	}))
}
