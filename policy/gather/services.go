package gather

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	"bocage.dev/bocage"
	"bocage.dev/bocage/manifest"
)

// service is what nobody decides about: flows to it reach the Pods behind it.
type service struct {
	Metadata bocage.ObjectMeta `json:"metadata"`
	Spec     struct {
		Selector   map[string]string `json:"selector"`
		ClusterIP  string            `json:"clusterIP"`
		ClusterIPs []string          `json:"clusterIPs"`
	} `json:"spec"`
}

// service notes a Service, as far as it can be read.
func (g *Gatherer) service(tree *manifest.Tree) {
	var s service
	if json.Unmarshal(tree.JSON(), &s) != nil || s.Metadata.Name == "" {
		return
	}
	if s.Metadata.Namespace == "" {
		s.Metadata.Namespace = "default"
	}
	g.services = append(g.services, s)
}

// resolveServices makes the names and addresses of Services unusable as ends, with the Pods
// to name instead.
func (g *Gatherer) resolveServices() {
	for _, s := range g.services {
		name := s.Metadata.NamespacedName()
		instead := "the Pods behind it: name those"
		for _, w := range g.out.Input.Workloads {
			if len(s.Spec.Selector) > 0 && w.Namespace == s.Metadata.Namespace && (bocage.Selector{MatchLabels: s.Spec.Selector}).Matches(w.Labels) {
				instead = fmt.Sprintf("the Pods behind it: name one of those, such as %s", w.NamespacedName())
				break
			}
		}
		_, workload := g.sources[objectKey{"Workload", s.Metadata.Namespace, s.Metadata.Name}]
		if _, known := g.out.Unusable[name]; !known && !workload {
			g.out.Unusable[name] = fmt.Sprintf("%s is a Service, and policies decide about %s", name, instead)
		}
		for _, text := range append(slices.Clone(s.Spec.ClusterIPs), s.Spec.ClusterIP) {
			if address, err := netip.ParseAddr(text); err == nil {
				g.out.Unusable[address.Unmap().String()] = fmt.Sprintf("%s is the address of Service %s, and policies decide about %s", address, name, instead)
			}
		}
	}
}
