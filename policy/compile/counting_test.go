package compile

import (
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
)

// TestWhatCountsDecides leaves out of cells what makes no difference, and finds the same
// decision, with the same authors and the same ends.
func TestWhatCountsDecides(t *testing.T) {
	left := 0
	rapid.Check(t, func(t *rapid.T) {
		now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
		c := &compiler{now: now}
		j := &judge{c: c}
		asked := []*owed{
			{name: "g0", Duties: bocage.Duties{Log: logFull}, by: []bocage.Ref{{Kind: "Guardrail", Name: "g0", Field: "spec.require.log"}}},
			{name: "g1", Duties: bocage.Duties{Rate: "5/s"}, by: []bocage.Ref{{Kind: "Guardrail", Name: "g1", Field: "spec.require.rate"}}},
		}
		var covering []int32
		for i := range rapid.IntRange(0, 6).Draw(t, "statements") {
			which := rapid.IntRange(0, 1).Draw(t, "guardrail")
			s := statement{kind: kind(rapid.IntRange(0, int(acceptName)).Draw(t, "kind")), by: []bocage.Ref{{Kind: "Author", Name: fmt.Sprint(i)}}, ports: everything}
			ends := rapid.Bool().Draw(t, "ends")
			switch s.kind {
			case isolate, answer, except, mark:
				ends = true
			case allow, allowName, acceptName, refuse, kube, protect, dispose, disposeSilent, divert:
				ends = false
			}
			if ends {
				s.until = now.Add(time.Duration(rapid.IntRange(1, 3).Draw(t, "until")) * time.Minute)
			}
			switch s.kind {
			case refuse, dispose, disposeSilent:
				s.guardrail, s.disposition = asked[which].name, rapid.SampledFrom([]bocage.Verdict{bocage.VerdictDrop, bocage.VerdictReject}).Draw(t, "disposition")
			case except:
				s.guardrail = asked[which].name
			case acceptName:
				s.kube = &kubeRule{tier: kubeAdmin, priority: int32(rapid.IntRange(0, 1).Draw(t, "priority"))}
			case kube:
				s.kube = &kubeRule{ingress: rapid.Bool().Draw(t, "ingress"), tier: kubeTier(rapid.IntRange(0, int(kubeBaseline)).Draw(t, "tier")),
					action: kubeAction(rapid.IntRange(0, int(kubeIsolate)).Draw(t, "action"))}
			case owe:
				if s.guardrail = asked[which].name; rapid.Bool().Draw(t, "asked") && !ends {
					s.owed = asked[which]
				} else {
					s.duty = duty{Duties: bocage.Duties{Inspect: "sql"}, impossible: rapid.Bool().Draw(t, "impossible"), yields: ends}
				}
			}
			c.statements, covering = append(c.statements, s), append(covering, int32(i))
		}
		decided := func(numbers []int32) []decision {
			list := make([]*statement, len(numbers))
			for i, n := range numbers {
				list[i] = &c.statements[n]
			}
			chain := combine(list, now)
			for i := range chain {
				chain[i].owing = nil
			}
			return chain
		}
		counting := slices.Clone(j.counting(covering))
		if len(counting) < len(covering) {
			left++
		}
		if all, some := decided(covering), decided(counting); !reflect.DeepEqual(all, some) {
			t.Fatalf("%+v\nof all: %+v\nof %v: %+v", c.statements, all, counting, some)
		}
	})
	if left == 0 {
		t.Error("nothing is ever left out")
	}
}
