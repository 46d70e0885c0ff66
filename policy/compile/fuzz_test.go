package compile_test

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"slices"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
)

// FuzzCompile compiles whatever JSON decodes to: it never panics, gives the same
// bytes for another order, and decides every flow.
func FuzzCompile(f *testing.F) {
	for _, seed := range []string{
		`{}`,
		`{"Guardrails":[{"metadata":{"name":"g"},"spec":{"never":[{}],"separate":{"by":"namespace"},"protect":[{}],"exceptions":{"allowed":true,"max":"1h"}}}],
		  "Exceptions":[{"metadata":{"name":"e"},"spec":{"guardrail":"g","match":{"ports":[{"port":1}]},"from":"2026-11-20T11:30:00Z","until":"2026-11-20T12:30:00Z"}}]}`,
		`{"Guardrails":[{"metadata":{"name":"g","generation":2},"spec":{"never":[{}]},"status":{"approval":{"generation":1,"approved":{"grant":[{"from":{"addressGroups":["a"]}}]}}}}],
		  "AddressGroups":[{"metadata":{"name":"a"},"spec":{"addresses":["::ffff:10.0.0.0/104","0.0.0.0/0"]}}]}`,
		`{"Workloads":[{"metadata":{"name":"w","namespace":"n","labels":{"bocage.dev/zone":"x"}},"spec":{"host":"h","interface":"v","addresses":["10.0.0.1","fd00::1"],
		    "orchestrator":"kubernetes","ports":[{"name":"web","port":80}]},"status":{"identity":16,"assurance":"L9"}}],
		  "Zones":[{"metadata":{"name":"z"},"spec":{"hosts":["h"]}}],
		  "ThreatConditions":[{"metadata":{"name":"t"},"spec":{"zone":"z","level":"restrict","expires":"2026-11-20T12:30:00Z"}},
		    {"metadata":{"name":"q"},"spec":{"workload":"n/w","level":"quarantine","expires":"2026-11-20T12:30:00Z"}}],
		  "Responses":[{"metadata":{"name":"r"},"spec":{"when":{"level":"watch"},"then":{"refuseFrom":[{"peer":{"external":["10.0.0.0/8"]}}],"disposition":"reject","require":{"assurance":"L2"}}}}],
		  "NetworkPolicies":[{"metadata":{"name":"p","namespace":"n"},"spec":{"podSelector":{},"ingress":[{"from":[{"ipBlock":{"cidr":"0.0.0.0/0","except":["10.0.0.0/8"]}}],"ports":[{"port":"web"}]}]}}],
		  "ClusterNetworkPolicies":[{"metadata":{"name":"c"},"spec":{"tier":"Admin","priority":1,"subject":{"namespaces":{}},"egress":[{"action":"Deny","to":[{"networks":["0.0.0.0/0"]}]}]}}]}`,
		`{"Applications":[{"metadata":{"name":"a","namespace":"n"},"spec":{"workload":{"matchExpressions":[{"key":"a","operator":"Never"}]},"provides":[{"name":"p","port":65535,"endPort":1}]}}]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var in compile.Input
		if json.Unmarshal(data, &in) != nil {
			t.Skip()
		}
		if in.Now.IsZero() {
			in.Now = policytest.Now
		}
		if holdsNil(&in) {
			t.Skip() // a null in a list is no object: nobody hands one on
		}
		out := compile.Compile(in)
		first, err := json.Marshal(out)
		if err != nil {
			t.Fatal(err)
		}
		again, err := json.Marshal(compile.Compile(policytest.Shuffle(in, rand.New(rand.NewPCG(1, uint64(len(data)))))))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(first, again) {
			t.Fatalf("another order gives\n%s\nbefore it was\n%s", again, first)
		}
		for _, address := range policytest.Addresses()[:4] {
			_, reason := out.Ruleset().Decide(bocage.Flow{Source: address, Destination: policytest.Addresses()[0], Protocol: bocage.ProtocolTCP, DestinationPort: 80})
			if _, known := out.Ruleset().Decision(reason.Decision); !known {
				t.Fatalf("decision %s is not there", reason.Decision)
			}
		}
	})
}

func holdsNil(in *compile.Input) bool {
	return anyNil(in.Applications) || anyNil(in.Guardrails) || anyNil(in.Scopes) || anyNil(in.Profiles) || anyNil(in.Decoys) || anyNil(in.Quarantines) ||
		anyNil(in.ThreatConditions) || anyNil(in.Workloads) || anyNil(in.Exceptions) || anyNil(in.Responses) || anyNil(in.AddressGroups) || anyNil(in.Zones) ||
		anyNil(in.Namespaces) || anyNil(in.NetworkPolicies) || anyNil(in.ClusterNetworkPolicies) || anyNil(in.Hosts)
}

func anyNil[T any](list []*T) bool { return slices.Contains(list, nil) }
