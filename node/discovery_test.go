package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/store"
	"bocage.dev/bocage/store/mem"
)

func hostConditions(t *testing.T, s store.Store, name string) map[string]bocage.Condition {
	t.Helper()
	kind, _ := bocage.KindNamed("Host")
	object, _, err := store.Object(t.Context(), s, kind, "", name)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]bocage.Condition{}
	for _, c := range object.(*bocage.Host).Status.Conditions {
		all[c.Type] = c
	}
	return all
}

// Only what changed is looked at, and now and then all of it; what came of it
// stands on the Host.
func TestSightingsDesk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := mem.New()
		defer s.Close()
		var looked []string
		var fail error
		desk := newSightingsDesk(s, func(_ context.Context, name string, seen bocage.Sightings, settled map[string]bool) (map[string]string, error) {
			for _, sighting := range seen.Sightings {
				if !settled[sighting.NamespacedName()] {
					looked = append(looked, sighting.Name)
				}
			}
			return map[string]string{"shop/bad": "two\nreasons"}, fail
		})
		tell := func(want string, names ...string) {
			t.Helper()
			looked = nil
			seen := bocage.Sightings{Sources: []string{"/s"}, Known: []string{"/s"}, Ungoverned: []string{"shop/x uses the host's own interfaces"}}
			for _, name := range names {
				seen.Sightings = append(seen.Sightings, bocage.Sighting{Namespace: "shop", Name: name})
			}
			data, err := json.Marshal(seen)
			if err != nil {
				t.Fatal(err)
			}
			answer, err := desk.take(t.Context(), "h1", data)
			if fail == nil && (err != nil || !strings.Contains(string(answer), "shop/bad")) || !errors.Is(err, fail) {
				t.Errorf("%s, %v", answer, err)
			}
			if got := strings.Join(looked, " "); got != want {
				t.Errorf("%v: looked at %q, want %q", names, got, want)
			}
		}
		tell("a bad", "a", "bad")
		tell("", "a", "bad") // the very same
		tell("bad b", "a", "bad", "b")
		time.Sleep(sightingsEvery + time.Second) // of the bubble
		tell("a bad b", "a", "bad", "b")
		fail = errors.New("no store")
		tell("bad c", "a", "bad", "b", "c")
		fail = nil
		tell("a bad b c", "a", "bad", "b", "c")

		conditions := hostConditions(t, s, "h1")
		if c := conditions[bocage.ConditionDiscovered]; c.Status != "False" || c.Reason != "Refused" || !strings.Contains(c.Message, "shop/bad is not in the inventory: two; reasons") {
			t.Errorf("%+v", c)
		}
		if c := conditions[bocage.ConditionGoverned]; c.Status != "False" || c.Reason != "NotGoverned" {
			t.Errorf("%+v", c)
		}
		if _, err := desk.take(t.Context(), "h1", []byte("{")); err == nil {
			t.Error("half a report was taken")
		}
	})
}

func TestDiscoveryConditions(t *testing.T) {
	now := time.Now()
	of := func(seen bocage.Sightings, refused map[string]string) string {
		c := discoveryConditions(seen, refused, now)[0]
		return c.Status + " " + c.Reason
	}
	sources := []string{"/s"}
	if got := of(bocage.Sightings{}, nil); got != "True NothingToRead" {
		t.Error(got)
	}
	if got := of(bocage.Sightings{Sources: sources}, nil); got != "True Complete" {
		t.Error(got)
	}
	many := map[string]string{}
	for i := range 100 {
		many[fmt.Sprintf("shop/%03d", i)] = strings.Repeat("é", 100)
	}
	c := discoveryConditions(bocage.Sightings{Sources: sources, Failing: []string{"/s does not exist"}}, many, now)[0]
	if c.Reason != "RuntimeUnreachable" || !strings.Contains(c.Message, "/s does not exist") || !strings.Contains(c.Message, "and 91 more") || len(c.Message) > 1100 {
		t.Errorf("%+v", c)
	}
}

// The bridge of an uplink is shown, so that its ports can be watched, but is nothing
// to attach to; other uplinks are not shown at all.
func TestShown(t *testing.T) {
	links := []host.Link{{Index: 1, Name: "br0", Kind: "bridge", Ethernet: true}, {Index: 2, Name: "eth0", Kind: "device", Ethernet: true}, {Index: 3, Name: "veth0", Kind: "veth", Ethernet: true}}
	got := shown(links, func(l host.Link) bool { return l.Index < 3 })
	if len(got) != 2 || got[0].Name != "br0" || got[0].Ethernet || got[1].Name != "veth0" || !got[1].Ethernet || !links[0].Ethernet {
		t.Errorf("%+v", got)
	}
}

func TestConfigOfDiscovery(t *testing.T) {
	sources := func(c Config) (sockets []string) {
		list, err := c.sources()
		if err != nil {
			t.Error(err)
		}
		for _, s := range list {
			sockets = append(sockets, s.Socket)
		}
		return sockets
	}
	if got := sources(Config{}); !slices.Equal(got, []string{"/run/docker.sock", "/run/podman/podman.sock"}) {
		t.Errorf("%q", got)
	}
	if got := sources(Config{NoDiscovery: true, RuntimeSockets: []string{"/s"}}); got != nil {
		t.Errorf("%q", got)
	}
	_, err := Config{Agent: true, Controller: true, Host: "h1", RuntimeSockets: []string{"docker.sock", "/s=A_b"}, TrustLabels: []string{"bocage.dev/zone"}}.Complete()
	for _, part := range []string{"docker.sock", "A_b", "bocage.dev/zone"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not told: %v", part, err)
		}
	}
}
