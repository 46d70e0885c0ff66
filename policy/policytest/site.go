package policytest

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

// Shuffle returns the input with every list in another order.
func Shuffle(in compile.Input, r *rand.Rand) compile.Input {
	in.Applications = shuffled(in.Applications, r)
	in.Guardrails = shuffled(in.Guardrails, r)
	in.Scopes = shuffled(in.Scopes, r)
	in.Profiles = shuffled(in.Profiles, r)
	in.Decoys = shuffled(in.Decoys, r)
	in.Quarantines = shuffled(in.Quarantines, r)
	in.ThreatConditions = shuffled(in.ThreatConditions, r)
	in.Workloads = shuffled(in.Workloads, r)
	in.Exceptions = shuffled(in.Exceptions, r)
	in.Responses = shuffled(in.Responses, r)
	in.AddressGroups = shuffled(in.AddressGroups, r)
	in.Zones = shuffled(in.Zones, r)
	in.Namespaces = shuffled(in.Namespaces, r)
	in.NetworkPolicies = shuffled(in.NetworkPolicies, r)
	in.ClusterNetworkPolicies = shuffled(in.ClusterNetworkPolicies, r)
	in.Hosts = shuffled(in.Hosts, r)
	return in
}

func shuffled[T any](list []T, r *rand.Rand) []T {
	list = slices.Clone(list)
	r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

// Describe prints an input for a failure.
func Describe(in compile.Input) string {
	b, err := json.MarshalIndent(in, "", " ")
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Site makes a data center of the given number of workloads: one application of
// five workloads for every five, in namespaces of forty applications; each
// consumes two neighbours and a platform service, every tenth an address
// outside; one namespace in ten is a test one, kept from card data.
func Site(workloads int) compile.Input {
	const size = 5
	in := compile.Input{Generation: 1, Now: Now}
	applications := max(workloads/size, 1)
	place := func(a int) (namespace, name string) { return fmt.Sprintf("ns%d", a/40), fmt.Sprintf("app%d", a) }
	for i := range workloads {
		a := i / size
		namespace, name := place(a)
		env := "prod"
		if a/40%10 == 9 {
			env = "test"
		}
		in.Workloads = append(in.Workloads, &bocage.Workload{
			ObjectMeta: bocage.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("w%d", i),
				Labels: map[string]string{"app": name, "env": env, "pod": fmt.Sprintf("%s-%d", name, i)}},
			Spec: bocage.WorkloadSpec{Host: fmt.Sprintf("h%d", i%max(workloads/25, 1)), Interface: fmt.Sprintf("v%d", i),
				Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})}},
			Status: bocage.WorkloadStatus{Identity: bocage.IdentityFirst + bocage.Identity(i)},
		})
	}
	for a := range applications {
		namespace, name := place(a)
		app := &bocage.Application{
			ObjectMeta: bocage.ObjectMeta{Namespace: namespace, Name: name},
			Spec: bocage.ApplicationSpec{
				Workload: bocage.Selector{MatchLabels: map[string]string{"app": name}},
				Provides: []bocage.Provide{{Name: "http", Port: 8080}, {Name: "admin", Port: 9090, To: bocage.Selector{MatchLabels: map[string]string{"app": name}}}},
			},
		}
		if a%20 == 0 {
			app.Spec.Provides = append(app.Spec.Provides, bocage.Provide{Name: "cards", Port: 5432, Data: []string{"pci"}, ToNamespaces: []string{"*"}})
		}
		if a == 0 {
			app.Spec.Provides = append(app.Spec.Provides, bocage.Provide{Name: "dns", Port: 53, Protocol: "UDP", ToNamespaces: []string{"*"}})
		}
		for _, n := range []int{a + 1, a + 7} {
			if n < applications && n/40 == a/40 {
				_, service := place(n)
				app.Spec.Consumes = append(app.Spec.Consumes, bocage.Consume{Service: service, Interface: "http"})
			}
		}
		platform, _ := place(0)
		app.Spec.Consumes = append(app.Spec.Consumes, bocage.Consume{Service: platform + "/app0", Interface: "dns"})
		cardNamespace, cardService := place(a / 20 * 20)
		app.Spec.Consumes = append(app.Spec.Consumes, bocage.Consume{Service: cardNamespace + "/" + cardService, Interface: "cards"})
		if a%10 == 0 {
			app.Spec.Consumes = append(app.Spec.Consumes, bocage.Consume{External: bocage.ExternalPrefix(netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, byte(a >> 8), byte(a)}), 32)), Port: 443})
		}
		in.Applications = append(in.Applications, app)
	}
	in.Guardrails = []*bocage.Guardrail{
		{ObjectMeta: bocage.ObjectMeta{Name: "pci"}, Spec: bocage.GuardrailSpec{
			Match:   bocage.CellMatch{To: bocage.Side{Data: []string{"pci"}}},
			Never:   []bocage.CellMatch{{From: bocage.Side{Workload: &bocage.Selector{MatchLabels: map[string]string{"env": "test"}}}}},
			Require: &bocage.Duties{Inspect: "sql", Log: "full"}}},
	}
	in.Profiles = []*bocage.InspectionProfile{{ObjectMeta: bocage.ObjectMeta{Name: "sql"}, Spec: bocage.InspectionProfileSpec{Signatures: "alert tcp any any -> any any (sid:1;)"}}}
	in.Scopes = []*bocage.Scope{{ObjectMeta: bocage.ObjectMeta{Name: "all"}, Spec: bocage.ScopeSpec{Mode: bocage.ModeEnforce}}}
	in.Decoys = []*bocage.Decoy{{ObjectMeta: bocage.ObjectMeta{Name: "ssh"}, Spec: bocage.DecoySpec{Protocol: "ssh", Port: 22}}}
	return in
}
