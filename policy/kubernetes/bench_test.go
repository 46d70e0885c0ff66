package kubernetes_test

import (
	"fmt"
	"testing"

	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
)

func BenchmarkCompile(b *testing.B) {
	for _, size := range []struct{ namespaces, apps, replicas int }{{100, 10, 5}, {1000, 9, 11}} {
		in := policytest.Cluster(size.namespaces, size.apps, size.replicas)
		b.Run(fmt.Sprintf("%d Pods, %d policies", len(in.Workloads), len(in.NetworkPolicies)), func(b *testing.B) {
			for b.Loop() {
				out := compile.Compile(in)
				b.ReportMetric(float64(len(out.Ruleset().Rules)), "rules")
				b.ReportMetric(float64(len(out.Ruleset().Groups)), "groups")
			}
		})
	}
}
