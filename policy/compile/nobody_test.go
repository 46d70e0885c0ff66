package compile

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
)

// TestNobodyAsTried holds what is said of selectors that nobody can satisfy against
// trying all workloads that there can be.
func TestNobodyAsTried(t *testing.T) {
	keys := []string{"app", bocage.LabelNamespace, bocage.LabelName, bocage.LabelZone}
	values := []string{"a", "b", "c"} // somebody always has one that nobody asks for
	draw := func(t *rapid.T) *bocage.Selector {
		s := &bocage.Selector{}
		for range rapid.IntRange(0, 3).Draw(t, "terms") {
			key := rapid.SampledFrom(keys).Draw(t, "key")
			some := rapid.SliceOfN(rapid.SampledFrom(values), 1, 2).Draw(t, "values")
			operator := rapid.SampledFrom([]string{"", "In", "NotIn", "Exists", "DoesNotExist"}).Draw(t, "operator")
			switch operator {
			case "":
				s.MatchLabels = map[string]string{key: some[0]}
				continue
			case "Exists", "DoesNotExist":
				some = nil
			}
			s.MatchExpressions = append(s.MatchExpressions, bocage.Requirement{Key: key, Operator: operator, Values: some})
		}
		return s
	}
	everybody := []map[string]string{{}}
	for _, key := range keys {
		var more []map[string]string
		for _, labels := range everybody {
			for _, value := range append(values, "another", "") {
				one := map[string]string{key: value}
				if value == "" {
					if inherent(key) && key != bocage.LabelZone {
						continue
					}
					delete(one, key)
				}
				for k, v := range labels {
					one[k] = v
				}
				more = append(more, one)
			}
		}
		everybody = more
	}
	possible, impossible := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		namespaces := rapid.SliceOfNDistinct(rapid.SampledFrom(values), 0, 2, rapid.ID).Draw(t, "namespaces")
		first, second := draw(t), draw(t)
		why := nobody(namespaces, first, second)
		somebody := slices.ContainsFunc(everybody, func(labels map[string]string) bool {
			return (len(namespaces) == 0 || slices.Contains(namespaces, labels[bocage.LabelNamespace])) && first.Matches(labels) && second.Matches(labels)
		})
		if somebody != (why == "") {
			t.Fatalf("somebody is picked: %t; said: %q of %s in %v", somebody, why, fmt.Sprint(*first, *second), namespaces)
		}
		if somebody {
			possible++
		} else {
			impossible++
		}
	})
	t.Logf("%d are possible, %d not", possible, impossible)
}
