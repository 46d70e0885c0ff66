package discover

import (
	"errors"
	"maps"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/container"
)

const (
	first  = "111111111111"
	second = "222222222222"
)

// yard is what there is to fold, in the small.
type yard struct {
	sources []Source
	links   []host.Link
	boxes   map[string]Sandbox // by container
}

func (y *yard) fold(rules Rules) Found {
	rules.Host = "h1"
	if rules.Default == "" {
		rules.Default = DefaultNamespace
	}
	return Fold(rules, y.sources, y.links, func(c *container.Container) (Sandbox, error) {
		box, ok := y.boxes[c.ID]
		if !ok {
			return Sandbox{}, errors.New("no such sandbox")
		}
		return box, nil
	})
}

func mac(last byte) string { return net.HardwareAddr{2, 0, 0, 0, 0, last}.String() }

func attachment(network string, last byte) container.Attachment {
	return container.Attachment{Network: network, MAC: mac(last), Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, last})}}
}

func running(id, name string, attachments ...container.Attachment) container.Container {
	return container.Container{ID: id, Name: name, Image: "shop/" + name, ImageID: "sha256:1", Running: true, Pid: 7, Sandbox: "/run/ns", Mode: "bridge", Networks: attachments}
}

// connect gives a container a veth to the bridge, with the MAC at its end.
func (y *yard) connect(id string, number int32, index, bridge uint32, last byte) {
	far := index + 100
	y.links = append(y.links, host.Link{Index: index, Name: "veth" + string(rune('a'+index)), Kind: "veth", Master: bridge, Peer: far, PeerNamespace: number, Ethernet: true})
	box := y.boxes[id]
	box.Number = number
	address, _ := net.ParseMAC(mac(last))
	box.Links = append(box.Links, host.FarLink{Index: far, Kind: "veth", MAC: address, Parent: index})
	if y.boxes == nil {
		y.boxes = map[string]Sandbox{}
	}
	y.boxes[id] = box
}

func newYard(containers ...container.Container) *yard {
	return &yard{links: []host.Link{{Index: 2, Name: "docker0", Kind: "bridge"}, {Index: 3, Name: "br-back", Kind: "bridge"}}, boxes: map[string]Sandbox{},
		sources: []Source{{Socket: "/run/docker.sock", Listed: true, Live: true, Inventory: container.Inventory{Product: "docker", Containers: containers, Networks: []container.Network{
			{Name: "bridge", Driver: "bridge", Bridge: "docker0"}, {Name: "back", Driver: "bridge", Bridge: "br-back"}, {Name: "flat", Driver: "macvlan"}}}}}}
}

func TestFoldFindsInterfaces(t *testing.T) {
	y := newYard(running(first, "web", attachment("back", 5), attachment("bridge", 4)), running(second, "db", attachment("bridge", 6)))
	y.connect(first, 0, 10, 2, 4)
	y.connect(first, 0, 11, 3, 5)
	y.connect(second, 1, 12, 2, 6)
	found := y.fold(Rules{})
	if len(found.Sightings) != 2 || len(found.Bindings) != 3 || len(found.Ungoverned) != 0 || !found.Listed {
		t.Fatalf("%+v", found)
	}
	web := found.Sightings[1]
	if web.NamespacedName() != "default/web.h1" || web.Spec.Interface != "vethl" || web.Spec.MAC != mac(5) || web.Spec.Instance != first || len(web.Spec.Addresses) != 2 ||
		len(web.Spec.MoreInterfaces) != 1 || web.Spec.MoreInterfaces[0].Interface != "vethk" || web.Spec.MoreInterfaces[0].MAC != mac(4) || web.Image != "shop/web" {
		t.Errorf("%+v", web)
	}
	if _, faults := web.Workload("h1"); len(faults) != 0 {
		t.Error(faults)
	}
	for i, want := range []Binding{{Ifindex: 10, Instance: first, MAC: mac(4)}, {Ifindex: 11, Instance: first, MAC: mac(5)}, {Ifindex: 12, Instance: second, MAC: mac(6)}} {
		if got := found.Bindings[i]; got.Ifindex != want.Ifindex || got.Instance != want.Instance || got.MAC != want.MAC {
			t.Errorf("binding %+v, want %+v", got, want)
		}
	}
	if len(found.Networks) != 2 || !found.Networks[0].Known || found.Networks[1].Bridge != "docker0" {
		t.Errorf("%+v", found.Networks)
	}
}

// A workload that changes its own MAC is still found by its bridge, and held to the
// one that its runtime gave it; where nothing tells ends apart, none is guessed.
func TestFoldDoesNotGuess(t *testing.T) {
	y := newYard(running(first, "web", attachment("back", 5), attachment("bridge", 4)))
	y.connect(first, 0, 10, 2, 77)
	y.connect(first, 0, 11, 3, 5)
	if found := y.fold(Rules{}); len(found.Bindings) != 2 || found.Bindings[0].MAC != mac(4) {
		t.Errorf("%+v", found.Bindings)
	}
	y = newYard(running(first, "web", attachment("elsewhere", 5), attachment("nowhere", 4)))
	y.connect(first, 0, 10, 2, 77)
	y.connect(first, 0, 11, 3, 78)
	if found := y.fold(Rules{}); len(found.Bindings) != 0 || len(found.Sightings) != 0 {
		t.Errorf("%+v", found)
	}
	// An end in another namespace is not this container's, whatever its number says.
	y = newYard(running(first, "web", attachment("bridge", 4)))
	y.connect(first, 0, 10, 2, 4)
	y.links[len(y.links)-1].PeerNamespace = 9
	if found := y.fold(Rules{}); len(found.Bindings) != 0 {
		t.Errorf("%+v", found.Bindings)
	}
}

func TestFoldTellsWhatIsNotGoverned(t *testing.T) {
	outside := running("333333333333", "flat", attachment("flat", 9))
	outside.Mode = "flat"
	lone := running("444444444444", "rootless")
	lone.Mode = "slirp4netns"
	own := running("555555555555", "own")
	own.Mode = "host"
	none := running("666666666666", "none")
	none.Mode = "none"
	member := running("777777777777", "member")
	member.Mode = "container:" + first
	y := newYard(running(first, "web", attachment("bridge", 4)), outside, lone, own, none, member)
	y.connect(first, 0, 10, 2, 4)
	box := y.boxes[first]
	box.Links = append(box.Links, host.FarLink{Index: 300, Kind: "macvlan"})
	y.boxes[first] = box
	y.sources[0].Inventory.Left = 2
	found := y.fold(Rules{})
	if len(found.Sightings) != 1 {
		t.Errorf("%+v", found.Sightings)
	}
	all := strings.Join(found.Ungoverned, "\n")
	for _, part := range []string{"default/flat.h1 is on the macvlan network flat", "default/rootless.h1 is connected by slirp4netns", "default/own.h1 uses the host's own interfaces",
		"default/web.h1 has a macvlan", "2 containers of /run/docker.sock"} {
		if !strings.Contains(all, part) {
			t.Errorf("%q is not told:\n%s", part, all)
		}
	}
	if strings.Contains(all, "none") || strings.Contains(all, "member") {
		t.Errorf("told of what has no network of its own:\n%s", all)
	}
}

// Of two runtimes that name one sandbox the first has it, and a user's own runtime
// speaks for that user's sandboxes alone.
func TestFoldOfRivals(t *testing.T) {
	y := newYard(running(first, "web", attachment("bridge", 4)))
	y.connect(first, 0, 10, 2, 4)
	y.boxes[second] = y.boxes[first]
	rival := Source{Socket: "/run/user/1000/podman.sock", Namespace: "alice", Listed: true, Live: true, Inventory: container.Inventory{Containers: []container.Container{running(second, "thief", attachment("x", 4))}}}
	y.sources = append(y.sources, rival)
	if found := y.fold(Rules{}); len(found.Sightings) != 1 || found.Sightings[0].Name != "web.h1" || len(found.Ungoverned) != 1 {
		t.Errorf("%+v", found)
	}
	y.sources[1].Owner = 1000
	if found := y.fold(Rules{}); len(found.Sightings) != 1 || !strings.Contains(strings.Join(found.Ungoverned, ""), "not its user's") {
		t.Errorf("%+v", found)
	}
	y.sources = y.sources[1:]
	if found := y.fold(Rules{}); len(found.Sightings) != 0 {
		t.Errorf("a user took what root's namespace has: %+v", found)
	}
	box := y.boxes[second]
	box.Owner = 1000
	y.boxes[second] = box
	if found := y.fold(Rules{}); len(found.Sightings) != 1 || found.Sightings[0].Namespace != "alice" {
		t.Errorf("%+v", found)
	}
}

func TestFoldOfThoseWhoCome(t *testing.T) {
	coming := running(first, "web", container.Attachment{Network: "back"})
	coming.Running, coming.Pid, coming.Sandbox = false, 0, ""
	coming.Labels = map[string]string{"bocage.dev/namespace": "shop"}
	y := newYard(coming)
	found := y.fold(Rules{})
	if len(found.Networks) != 2 || len(found.Networks[0].Coming) != 1 || found.Networks[0].Coming[0].Namespace != "shop" || len(found.Networks[1].Coming) != 0 {
		t.Errorf("%+v", found.Networks)
	}
	y.sources[0].Live = false
	if found := y.fold(Rules{}); found.Networks[0].Known {
		t.Error("a socket that is away tells of those who come")
	}
}

func TestFoldOfPods(t *testing.T) {
	infra := running(first, "abc-infra", attachment("back", 5))
	infra.Image = "pause"
	one := running(second, "one")
	one.Mode = "container:" + first
	y := newYard(infra, one)
	y.sources[0].Inventory.Pods = []container.Pod{{ID: "999999999999", Name: "duo", Infra: first, Labels: map[string]string{"app": "duo"}}}
	y.connect(first, 0, 10, 3, 5)
	found := y.fold(Rules{Trusted: []string{"app"}})
	if len(found.Sightings) != 1 || found.Sightings[0].Name != "duo.h1" || found.Sightings[0].Image != "shop/one" || found.Sightings[0].Labels["app"] != "duo" {
		t.Errorf("%+v", found.Sightings)
	}
}

func TestNames(t *testing.T) {
	for name, want := range map[string]string{"web": "web.h1", "shop-web-1": "shop-web-1.h1"} {
		if got := nameOf(name, "h1"); got != want {
			t.Errorf("%q: %q", name, got)
		}
	}
	// Names that are alike stay apart.
	seen := map[string]string{}
	for _, name := range []string{"web_1", "web-1", "Web-1", "WEB_1", "web.1", "", "-", "\u202eweb", strings.Repeat("x", 300), strings.Repeat("x", 301), "web-1.h2"} {
		got := nameOf(name, "h1")
		if other, twice := seen[got]; twice {
			t.Errorf("%q and %q are both %q", name, other, got)
		}
		seen[got] = name
	}
	for _, test := range []struct {
		bound  string
		labels map[string]string
		want   string
	}{
		{"", nil, "default"}, {"", map[string]string{"bocage.dev/namespace": "shop"}, "shop"}, {"", map[string]string{"bocage.dev/namespace": "../x"}, "default"},
		{"", map[string]string{"com.docker.compose.project": "shop"}, "shop"}, {"alice", map[string]string{"bocage.dev/namespace": "shop"}, "alice"},
		{"", map[string]string{"bocage.dev/namespace": "Shop", "io.podman.compose.project": "p"}, "p"},
	} {
		if got := namespaceOf(test.bound, "default", test.labels); got != test.want {
			t.Errorf("%+v: %q", test, got)
		}
	}
}

func TestLabels(t *testing.T) {
	got := labelsOf(map[string]string{"app": "web", "tier/x": "a", "tier.x": "b", "bocage.dev/zone": "pci", "kubernetes.io/role": "x", "bad value": "x", "v": "a b", "u": "\u202e",
		"com.docker.compose.container-number": "1", "com.docker.compose.service": "web", "org.opencontainers.image.title": "x"}, []string{"app", "absent"})
	want := map[string]string{"app": "web", "container/app": "web", "container/tier.x": "b", "container/kubernetes.io.role": "x", "container/com.docker.compose.service": "web"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%q", got)
	}
}

// Whatever a runtime says, what comes of it can be declared and carries none of the
// system's labels but by the place that it has; and nothing is bound twice.
func TestFoldOfAnything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"web", "Web_1", "bocage.dev/zone", "kubernetes.io/x", "a/b", "app", "bocage.dev/namespace", "com.docker.compose.project"}))
		y := newYard()
		for i := range rapid.IntRange(0, 4).Draw(t, "containers") {
			id := strings.Repeat(string(rune('a'+i)), 12)
			c := running(id, text.Draw(t, "name"))
			c.Mode = rapid.SampledFrom([]string{"bridge", "host", "none", "container:" + first, "slirp4netns", ""}).Draw(t, "mode")
			c.Labels = rapid.MapOfN(text, text, 0, 5).Draw(t, "labels")
			for j := range rapid.IntRange(0, 3).Draw(t, "networks") {
				last := byte(rapid.IntRange(1, 6).Draw(t, "address"))
				c.Networks = append(c.Networks, attachment(rapid.SampledFrom([]string{"bridge", "back", "flat", "x"}).Draw(t, "network"), last))
				if rapid.Bool().Draw(t, "connected") {
					y.connect(id, int32(rapid.IntRange(0, 2).Draw(t, "number")), uint32(10+4*i+j), uint32(rapid.IntRange(0, 3).Draw(t, "bridge")), last)
				}
			}
			y.sources[0].Inventory.Containers = append(y.sources[0].Inventory.Containers, c)
		}
		rules := Rules{Trusted: []string{"app"}}
		found := y.fold(rules)
		indexes := map[uint32]bool{}
		for _, b := range found.Bindings {
			if indexes[b.Ifindex] {
				t.Fatalf("link %d is bound twice", b.Ifindex)
			}
			indexes[b.Ifindex] = true
		}
		for _, s := range found.Sightings {
			_, faults := s.Workload("h1")
			faults = slices.DeleteFunc(faults, func(f bocage.Fault) bool {
				return strings.HasPrefix(f.Field, "spec.moreInterfaces") // two networks may give one address: told, not vouched for
			})
			if len(faults) > 0 {
				t.Fatalf("%+v: %v", s, faults)
			}
			for key := range s.Labels {
				if key != "app" && !strings.HasPrefix(key, Prefix) {
					t.Fatalf("label %q", key)
				}
			}
		}
		again := y.fold(rules)
		if !reflect.DeepEqual(found, again) {
			t.Fatalf("folded twice: %+v and %+v", found, again)
		}
	})
}

func TestTrustable(t *testing.T) {
	want := map[string]bool{"app": true, "team.example/tier": true, "bocage.dev/zone": false, "x.bocage.dev/y": false, "kubernetes.io/x": false, "node.k8s.io/x": false, "": false, "a b": false, "container/app": true}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if got := trustable(key); got != want[key] {
			t.Errorf("%q: %t", key, got)
		}
	}
}

func TestParseSource(t *testing.T) {
	for text, want := range map[string]SourceConfig{
		"/run/docker.sock": {Socket: "/run/docker.sock"}, "unix:///run/docker.sock": {Socket: "/run/docker.sock"},
		"/run/user/1000/podman/podman.sock=alice": {Socket: "/run/user/1000/podman/podman.sock", Namespace: "alice"},
	} {
		if got, err := ParseSource(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "docker.sock", "tcp://10.0.0.1:2375", "/run/docker.sock=", "/run/docker.sock=A_b"} {
		if got, err := ParseSource(text); err == nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
	if _, err := New(Config{Rules: Rules{Trusted: []string{"bocage.dev/zone"}, Default: "../x"}, Sources: []SourceConfig{{Socket: "/a"}, {Socket: "/a"}}}); err == nil ||
		!strings.Contains(err.Error(), "bocage.dev/zone") || !strings.Contains(err.Error(), "../x") || !strings.Contains(err.Error(), "twice") {
		t.Errorf("not all faults: %v", err)
	}
}
