package compile_test

import (
	"fmt"
	"testing"

	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
)

func BenchmarkCompile(b *testing.B) {
	for _, n := range []int{10, 1_000, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			in := policytest.Site(n)
			b.ReportAllocs()
			rules := 0
			for b.Loop() {
				rules = len(compile.Compile(in).Ruleset.Rules)
			}
			b.ReportMetric(float64(rules), "rules")
		})
	}
}
