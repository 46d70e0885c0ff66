package api

import (
	"encoding/json"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
	"bocage.dev/bocage/identity"
	"bocage.dev/bocage/store"
	"bocage.dev/bocage/store/mem"
)

// doorway is the one address of several controllers, as a load balancer has it.
type doorway struct {
	listener net.Listener
	done     sync.WaitGroup

	mu    sync.Mutex // guards what follows
	to    string
	conns map[net.Conn]struct{}
}

func newDoorway(t *testing.T, to string) *doorway {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &doorway{listener: listener, to: to, conns: map[net.Conn]struct{}{}}
	d.done.Go(d.serve)
	t.Cleanup(func() {
		_ = listener.Close()
		d.turn("")
		d.done.Wait()
	})
	return d
}

func (d *doorway) serve() {
	for {
		from, err := d.listener.Accept()
		if err != nil {
			return
		}
		d.mu.Lock()
		to, err := net.Dial("tcp", d.to)
		if err != nil {
			_ = from.Close()
			d.mu.Unlock()
			continue
		}
		d.conns[from], d.conns[to] = struct{}{}, struct{}{}
		d.mu.Unlock()
		for _, pair := range [][2]net.Conn{{from, to}, {to, from}} {
			d.done.Go(func() {
				_, _ = io.Copy(pair[0], pair[1])
				_, _ = pair[0].Close(), pair[1].Close()
				d.mu.Lock()
				delete(d.conns, pair[0])
				d.mu.Unlock()
			})
		}
	}
}

// turn breaks every connection, as the death of a controller does, and leads the
// next ones elsewhere.
func (d *doorway) turn(to string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.to = to
	for conn := range d.conns {
		_ = conn.Close()
	}
}

// controllers are two of them on one store, behind one address.
func controllers(t *testing.T) (first, second, both *bench, door *doorway) {
	t.Helper()
	shared := mem.New()
	t.Cleanup(func() { _ = shared.Close() })
	first = start(t, func(c *Config) { c.Store = shared })
	second = start(t, func(c *Config) {
		svid, err := first.authority.IssueSVID("/controller/c2", time.Hour, identity.IssueOptions{DNSNames: []string{"localhost"}})
		if err != nil {
			t.Fatal(err)
		}
		c.Store, c.SVID, c.Bundle = shared, func() *identity.SVID { return svid }, first.authority.Bundle()
	})
	door = newDoorway(t, strings.TrimPrefix(first.address, "https://"))
	copied := *first
	copied.address = "https://" + door.listener.Addr().String()
	return first, second, &copied, door
}

// die ends the first of two controllers under those who are connected to it.
func die(first, second *bench, door *doorway) {
	door.turn(strings.TrimPrefix(second.address, "https://"))
	first.stop()
}

// TestInformerSurvivesAController: client-go's informer, without types, goes on
// with the other controller where it was, and is told of nothing twice and misses
// nothing, deletions not even.
func TestInformerSurvivesAController(t *testing.T) {
	first, second, both, door := controllers(t)
	first.mustScope(t, "POST", "a", "")
	second.mustScope(t, "POST", "b", "")
	informer := both.inform(t, RoleViewer, "scopes")
	informer.want("added /a", "added /b", "synced 2")
	second.mustScope(t, "PATCH", "b", `{"spec":{"mode":"enforce"}}`)
	informer.want("updated /b")
	door.turn("127.0.0.1:1") // nobody answers for a while
	second.mustScope(t, "POST", "c", "")
	second.mustScope(t, "DELETE", "a", "")
	die(first, second, door)
	informer.want("added /c", "deleted /a")
	second.mustScope(t, "PATCH", "c", `{"spec":{"mode":"enforce"}}`)
	informer.want("updated /c")
	if err := informer.end(); err != nil {
		t.Error(err)
	}
}

// TestOwnInformerSurvivesAController is the same for the Go client of ours.
func TestOwnInformerSurvivesAController(t *testing.T) {
	first, second, both, door := controllers(t)
	first.mustScope(t, "POST", "a", "")
	informer, want, end := followScopes(t, both)
	want("+a")
	<-informer.Synced()
	door.turn("127.0.0.1:1")
	second.mustScope(t, "POST", "b", "")
	second.mustScope(t, "DELETE", "a", "")
	die(first, second, door)
	want("+b")
	want("-a")
	second.mustScope(t, "PATCH", "b", `{"spec":{"mode":"enforce"}}`)
	want("~b")
	end()
}

// TestClocksOfOthers: what a controller whose clock is ahead or behind has written
// means what its times say, and nothing lives for ever by it.
func TestClocksOfOthers(t *testing.T) {
	b := start(t, nil)
	ctx := t.Context()
	now := time.Now()
	for name, test := range map[string]struct {
		ends time.Time
		good bool
	}{
		"made by one that is five minutes ahead":           {now.Add(5*time.Minute + defaultSession), true},
		"made for a minute by one five minutes behind":     {now.Add(time.Minute - 5*time.Minute), false},
		"made for an hour by one that is five behind":      {now.Add(55 * time.Minute), true},
		"ended already, made by one that is an hour ahead": {now.Add(-time.Second), false},
	} {
		token := "token " + name
		value, err := json.Marshal(Session{Person: Person{Name: tokenName + "x", Grants: []Grant{{Role: RoleViewer}}}, Expires: test.ends})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := store.Put(ctx, b.store, sessionsPrefix+hashOf(token), value, store.Absent); err != nil {
			t.Fatal(err)
		}
		if _, err := b.withToken(t, token).WhoAmI(ctx); (err == nil) != test.good {
			t.Errorf("a token %s: %v", name, err)
		}
	}
	// An object that was created, and is being deleted, in the future.
	ahead := now.Add(10 * time.Minute).UTC().Truncate(time.Second)
	s := scope("ahead", bocage.ModeObserve)
	s.UID, s.Generation, s.CreationTimestamp, s.DeletionTimestamp, s.Finalizers = "1", 1, &ahead, &ahead, []string{"a/b"}
	if _, err := store.PutObject(ctx, b.store, kind("Scope"), s, store.Absent); err != nil {
		t.Fatal(err)
	}
	if _, err := b.client.Patch(ctx, kind("Scope"), "", "ahead", "", map[string]any{"metadata": map[string]any{"finalizers": nil}}, client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.client.Get(ctx, kind("Scope"), "", "ahead"); !client.HasReason(err, client.ReasonNotFound) {
		t.Errorf("it did not go once nothing held it: %v", err)
	}
	table, err := b.client.Table(ctx, kind("Scope"), "", client.ListOptions{})
	if err != nil || len(table.Rows) != 0 {
		t.Errorf("%+v %v", table, err)
	}
}
