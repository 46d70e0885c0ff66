package container_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage/host/container"
	"bocage.dev/bocage/host/container/containertest"
	"bocage.dev/bocage/host/hosttest"
)

// watched follows a runtime for a test.
type watched struct {
	t    *testing.T
	seen chan container.Inventory
	last container.Inventory
	end  chan error
}

func watch(t *testing.T, socket string) *watched {
	ctx, cancel := context.WithCancel(t.Context())
	w := &watched{t: t, seen: make(chan container.Inventory, 1000), end: make(chan error, 1)}
	go func() {
		w.end <- container.New(socket).Follow(ctx, func(i container.Inventory) { w.seen <- i })
	}()
	t.Cleanup(func() {
		cancel()
		<-w.end
	})
	return w
}

// until waits for an inventory that is as wanted.
func (w *watched) until(what string, as func(container.Inventory) bool) {
	w.t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		select {
		case w.last = <-w.seen:
			if as(w.last) {
				return
			}
		case err := <-w.end:
			w.end <- err
			w.t.Fatalf("%s: it ended: %v", what, err)
		case <-deadline:
			w.t.Fatalf("%s: not seen; last: %+v", what, w.last)
		}
	}
}

func named(i container.Inventory, name string) *container.Container {
	at := slices.IndexFunc(i.Containers, func(c container.Container) bool { return c.Name == name })
	if at < 0 {
		return nil
	}
	return &i.Containers[at]
}

func TestRootFollowRealRuntimes(t *testing.T) {
	hosttest.Root(t)
	for _, product := range containertest.Products() {
		t.Run(product, func(t *testing.T) {
			runtime := containertest.Start(t, product, hosttest.Namespace(t))
			runtime.Must("network", "create", "first")
			runtime.Must("network", "create", "--label", "bocage.dev/namespace=shop", "second")
			before := runtime.Run("before", "--network", "first", "--label", "app=web")
			w := watch(t, runtime.Socket)
			w.until("what ran before", func(i container.Inventory) bool {
				c := named(i, "before")
				return c != nil && c.ID == before && c.Running && c.Labels["app"] == "web" && len(c.Networks) == 1 && c.Networks[0].Network == "first" &&
					len(c.Networks[0].Addresses) == 1 && c.Networks[0].MAC != "" && strings.Contains(c.Image, "probe") && c.ImageID != "" && i.Product == product
			})
			at := slices.IndexFunc(w.last.Networks, func(n container.Network) bool { return n.Name == "second" })
			if at < 0 || w.last.Networks[at].Bridge == "" || w.last.Networks[at].Labels["bocage.dev/namespace"] != "shop" {
				t.Errorf("networks %+v", w.last.Networks)
			}
			runtime.Run("later", "--network", "second")
			w.until("a start", func(i container.Inventory) bool {
				c := named(i, "later")
				return c != nil && c.Running && len(c.Networks) == 1 && len(c.Networks[0].Addresses) > 0
			})
			runtime.Must("network", "connect", "first", "later")
			w.until("a second network", func(i container.Inventory) bool {
				c := named(i, "later")
				return c != nil && len(c.Networks) == 2 && len(c.Networks[0].Addresses) > 0 && len(c.Networks[1].Addresses) > 0
			})
			runtime.Must("network", "disconnect", "second", "later")
			w.until("one network again", func(i container.Inventory) bool { c := named(i, "later"); return c != nil && len(c.Networks) == 1 })
			runtime.Must("rename", "later", "renamed")
			w.until("a new name", func(i container.Inventory) bool { return named(i, "renamed") != nil && named(i, "later") == nil })
			runtime.Must("restart", "-t", "0", "renamed")
			w.until("a restart", func(i container.Inventory) bool { c := named(i, "renamed"); return c != nil && c.Running })
			runtime.Must("kill", "renamed")
			w.until("an end", func(i container.Inventory) bool { return named(i, "renamed") == nil })
			runtime.Must("rm", "-f", "before")
			w.until("a removal", func(i container.Inventory) bool { return len(i.Containers) == 0 && i.Left == 0 })
			runtime.Kill()
			select {
			case err := <-w.end:
				w.end <- err
				if errors.Is(err, context.Canceled) {
					t.Errorf("a killed runtime: %v", err)
				}
			case <-time.After(30 * time.Second):
				t.Error("a killed runtime is not noticed")
			}
			runtime.Serve()
			again := watch(t, runtime.Socket)
			again.until("the runtime's return", func(i container.Inventory) bool { return len(i.Networks) > 1 })
		})
	}
}
