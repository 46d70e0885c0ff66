package api

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
	"bocage.dev/bocage/store"
)

const dockerSocket = "/run/docker.sock"

// sighting of a container in namespace shop, with the n-th address and interface.
func sighting(name, host string, n int) bocage.Sighting {
	return bocage.Sighting{Source: dockerSocket, Namespace: "shop", Name: bocage.SightingName(name, host), Image: "shop/web:1", Digest: "sha256:1",
		Labels: map[string]string{"container/app": "web"},
		Spec: bocage.WorkloadSpec{Interface: fmt.Sprintf("veth%d", n), MAC: fmt.Sprintf("02:00:00:00:00:%02x", n), Instance: fmt.Sprintf("id%d", n),
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(n)})}}}
}

func sightings(list ...bocage.Sighting) bocage.Sightings {
	return bocage.Sightings{Sources: []string{dockerSocket}, Known: []string{dockerSocket}, Sightings: list}
}

// vouch tells the server, and returns what was refused.
func (b *bench) vouch(t *testing.T, host string, seen bocage.Sightings) map[string]string {
	t.Helper()
	refused, err := b.server.Vouch(t.Context(), host, seen, nil)
	if err != nil {
		t.Fatal(err)
	}
	return refused
}

// workloads reads all of them by namespace/name.
func (b *bench) workloads(t *testing.T) map[string]*bocage.Workload {
	t.Helper()
	objects, _, err := store.Objects(t.Context(), b.store, kind("Workload"))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*bocage.Workload{}
	for _, o := range objects {
		all[o.(*bocage.Workload).NamespacedName()] = o.(*bocage.Workload)
	}
	return all
}

func (b *bench) names(t *testing.T) string {
	t.Helper()
	return strings.Join(slices.Sorted(maps.Keys(b.workloads(t))), " ")
}

func TestVouchFollowsWhatAHostSees(t *testing.T) {
	b := start(t, nil)
	if refused := b.vouch(t, "h1", sightings(sighting("web", "h1", 1), sighting("api", "h1", 2))); len(refused) != 0 {
		t.Fatal(refused)
	}
	web := b.workloads(t)["shop/web.h1"]
	if web == nil || web.Spec.Host != "h1" || web.Status.Identity == 0 || web.Status.Assurance != "L2" || web.Status.VouchedBy != "h1" ||
		web.Status.Image != "shop/web:1" || web.Labels["container/app"] != "web" || web.UID == "" || web.Generation != 1 {
		t.Fatalf("%+v", web)
	}
	// The same again changes nothing, not even a revision.
	b.vouch(t, "h1", sightings(sighting("web", "h1", 1), sighting("api", "h1", 2)))
	if again := b.workloads(t)["shop/web.h1"]; again.ResourceVersion != web.ResourceVersion {
		t.Error("an unchanged workload was written")
	}
	// Started anew under its name, in another place: the identity stays.
	moved := sighting("web", "h1", 3)
	b.vouch(t, "h1", sightings(moved, sighting("api", "h1", 2)))
	if again := b.workloads(t)["shop/web.h1"]; again.Status.Identity != web.Status.Identity || again.Spec.Instance != "id3" || again.Generation != 2 {
		t.Errorf("%+v", again)
	}
	// A stopped one stays, until another needs what it had.
	moved.Stopped = true
	b.vouch(t, "h1", sightings(moved, sighting("api", "h1", 2)))
	if got := b.names(t); got != "shop/api.h1 shop/web.h1" {
		t.Errorf("after a stop: %s", got)
	}
	heir := sighting("heir", "h1", 3)
	if refused := b.vouch(t, "h1", sightings(moved, heir, sighting("api", "h1", 2))); len(refused) != 0 {
		t.Error(refused)
	}
	if got := b.names(t); got != "shop/api.h1 shop/heir.h1" {
		t.Errorf("after its address is another's: %s", got)
	}
	// Renamed: what has the address now is told of under another name.
	renamed := sighting("renamed", "h1", 3)
	if refused := b.vouch(t, "h1", sightings(renamed, sighting("api", "h1", 2))); len(refused) != 0 {
		t.Error(refused)
	}
	if got := b.names(t); got != "shop/api.h1 shop/renamed.h1" {
		t.Errorf("after a new name: %s", got)
	}
	// A source that cannot be read takes nothing away; one that is no more does.
	b.vouch(t, "h1", bocage.Sightings{Sources: []string{dockerSocket}})
	if got := b.names(t); got != "shop/api.h1 shop/renamed.h1" {
		t.Errorf("while its socket is away: %s", got)
	}
	b.vouch(t, "h1", bocage.Sightings{Sources: []string{"/run/podman/podman.sock"}})
	if got := b.names(t); got != "" {
		t.Errorf("after its socket was given up: %s", got)
	}
	// Everything that was claimed is free.
	if refused := b.vouch(t, "h2", sightings(sighting("web", "h2", 1), sighting("api", "h2", 2), sighting("x", "h2", 3))); len(refused) != 0 {
		t.Error(refused)
	}
}

// A host speaks for what is on it, in the bounds that it was given, and gives no
// privileges.
func TestVouchRefusesWhatAHostMayNotSay(t *testing.T) {
	b := start(t, nil)
	b.vouch(t, "h1", sightings(sighting("web", "h1", 1)))
	before := b.workloads(t)["shop/web.h1"]
	change := func(do func(*bocage.Sighting)) bocage.Sighting {
		s := sighting("liar", "h2", 9)
		do(&s)
		return s
	}
	for name, lie := range map[string]bocage.Sighting{
		"another host's workload":   change(func(s *bocage.Sighting) { s.Name = "web.h1" }),
		"a host that ends alike":    change(func(s *bocage.Sighting) { s.Name = "web.xh2" }),
		"another host's address":    change(func(s *bocage.Sighting) { s.Spec.Addresses = before.Spec.Addresses }),
		"a Pod":                     change(func(s *bocage.Sighting) { s.Spec.Orchestrator = bocage.OrchestratorKubernetes }),
		"a zone":                    change(func(s *bocage.Sighting) { s.Labels = map[string]string{bocage.LabelZone: "pci"} }),
		"an assurance":              change(func(s *bocage.Sighting) { s.Labels = map[string]string{bocage.LabelAssurance: "L5"} }),
		"a label of Kubernetes":     change(func(s *bocage.Sighting) { s.Labels = map[string]string{"node-role.kubernetes.io/control-plane": "x"} }),
		"a label that is none":      change(func(s *bocage.Sighting) { s.Labels = map[string]string{"container/\u202e": "x"} }),
		"no interface":              change(func(s *bocage.Sighting) { s.Spec.Interface = "" }),
		"no instance":               change(func(s *bocage.Sighting) { s.Spec.Instance = "" }),
		"a namespace that is none":  change(func(s *bocage.Sighting) { s.Namespace = "../x" }),
		"an address that is none":   change(func(s *bocage.Sighting) { s.Spec.Addresses = []netip.Addr{netip.MustParseAddr("127.0.0.1")} }),
		"no address":                change(func(s *bocage.Sighting) { s.Spec.Addresses = nil }),
		"an interface with a slash": change(func(s *bocage.Sighting) { s.Spec.MoreInterfaces = []bocage.WorkloadInterface{{Interface: "../../x"}} }),
	} {
		refused := b.vouch(t, "h2", sightings(lie))
		if refused[lie.NamespacedName()] == "" || b.names(t) != "shop/web.h1" {
			t.Errorf("%s: refused %q, there are %s", name, refused, b.names(t))
		}
	}
	if after := b.workloads(t)["shop/web.h1"]; after.ResourceVersion != before.ResourceVersion {
		t.Errorf("another host's words changed it: %+v", after)
	}
	// What h2 says places its workload on h2, whatever it writes.
	elsewhere := sighting("web", "h2", 5)
	elsewhere.Spec.Host = "h1"
	b.vouch(t, "h2", sightings(elsewhere))
	if w := b.workloads(t)["shop/web.h2"]; w == nil || w.Spec.Host != "h2" {
		t.Errorf("%+v", w)
	}
	// It cannot take away what h1 sees.
	b.vouch(t, "h2", bocage.Sightings{Sources: []string{"/other"}})
	if got := b.names(t); got != "shop/web.h1" {
		t.Errorf("there are %s", got)
	}

	bounded := &bocage.Host{ObjectMeta: bocage.ObjectMeta{Name: "h3"}}
	bounded.Spec.MayPlace = bocage.Placeable{Namespaces: []string{"shop"}, Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/28")}}
	if _, err := store.PutObject(t.Context(), b.store, kind("Host"), bounded, store.Absent); err != nil {
		t.Fatal(err)
	}
	inside, outside, apart := sighting("in", "h3", 4), sighting("out", "h3", 200), sighting("apart", "h3", 6)
	apart.Namespace = "pay"
	refused := b.vouch(t, "h3", sightings(inside, outside, apart))
	if len(refused) != 2 || b.workloads(t)["shop/in.h3"] == nil {
		t.Errorf("refused %q, there are %s", refused, b.names(t))
	}
}

// What is declared counts, whichever came first; and people's labels stay.
func TestDeclarationsWinOverSightings(t *testing.T) {
	b := start(t, nil)
	declare := func(name, port, address string) error {
		_, err := b.client.Apply(t.Context(), documents(t, workload("shop", name, "h1", port, address)), client.WriteOptions{Force: true})
		return err
	}
	if err := declare("first", "veth1", "10.0.0.1"); err != nil {
		t.Fatal(err)
	}
	refused := b.vouch(t, "h1", sightings(sighting("web", "h1", 1), sighting("api", "h1", 2)))
	if !strings.Contains(refused["shop/web.h1"], "shop/first") || len(refused) != 1 {
		t.Errorf("refused %q", refused)
	}
	if err := declare("second", "veth-other", "10.0.0.2"); err != nil {
		t.Errorf("a declaration of what a host discovered: %v", err)
	}
	if got := b.names(t); got != "shop/first shop/second" {
		t.Errorf("there are %s", got)
	}
	if refused := b.vouch(t, "h1", sightings(sighting("api", "h1", 2))); refused["shop/api.h1"] == "" {
		t.Error("what a declaration took was taken back")
	}
	// A discovered one that somebody writes a spec for is a declaration from then on.
	b.vouch(t, "h1", sightings(sighting("db", "h1", 7)))
	if err := declare("db.h1", "veth7", "10.0.0.8"); err != nil {
		t.Fatal(err)
	}
	refused = b.vouch(t, "h1", sightings(sighting("db", "h1", 7)))
	if w := b.workloads(t)["shop/db.h1"]; refused["shop/db.h1"] == "" || w.Status.VouchedBy != "" || w.Status.Assurance != "" || w.Spec.Addresses[0] != netip.MustParseAddr("10.0.0.8") {
		t.Errorf("refused %q: %+v", refused, w)
	}
	b.vouch(t, "h1", sightings())
	if got := b.names(t); got != "shop/db.h1 shop/first shop/second" {
		t.Errorf("there are %s", got)
	}

	b.vouch(t, "h1", sightings(sighting("cache", "h1", 9)))
	status, body, _ := b.raw(t, "PATCH", "/apis/bocage.dev/v1/namespaces/shop/workloads/cache.h1", "application/merge-patch+json", `{"metadata":{"labels":{"tier":"gold"}}}`)
	if status != 200 {
		t.Fatal(body)
	}
	relabelled := sighting("cache", "h1", 9)
	relabelled.Labels = map[string]string{"container/app": "cache", "tier": "forged"}
	b.vouch(t, "h1", sightings(relabelled))
	if w := b.workloads(t)["shop/cache.h1"]; w.Labels["tier"] != "gold" || w.Labels["container/app"] != "cache" || w.Status.VouchedBy != "h1" {
		t.Errorf("labels %v, %+v", w.Labels, w.Status)
	}
}

func TestVouchOfMany(t *testing.T) {
	b := start(t, nil)
	var many []bocage.Sighting
	for i := range 200 {
		many = append(many, sighting(fmt.Sprint("c", i), "h1", i+1))
	}
	if refused := b.vouch(t, "h1", sightings(many...)); len(refused) != 0 {
		t.Fatal(refused)
	}
	if n := len(b.workloads(t)); n != 200 {
		t.Errorf("%d workloads", n)
	}
	b.vouch(t, "h1", sightings(many[:3]...))
	if got := b.names(t); got != "shop/c0.h1 shop/c1.h1 shop/c2.h1" {
		t.Errorf("there are %s", got)
	}
}
