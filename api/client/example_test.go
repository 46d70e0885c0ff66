package client_test

import (
	"context"
	"fmt"
	"log"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
)

// An informer keeps a copy of all workloads, finds those of a host without asking
// the server, and tells of each change.
func ExampleNewInformer() {
	c, err := client.New(client.Config{Socket: "/run/bocage/api.sock"})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	informer, err := client.NewInformer(c, client.InformerOptions[*bocage.Workload]{
		ListOptions: client.ListOptions{Namespace: "shop"},
		Indexers: map[string]func(*bocage.Workload) []string{
			"host": func(w *bocage.Workload) []string { return []string{w.Spec.Host} },
		},
		Handle: func(change client.Change[*bocage.Workload]) {
			switch {
			case change.Was == nil:
				fmt.Println("new:", change.Is.Name)
			case change.Is == nil:
				fmt.Println("gone:", change.Was.Name)
			}
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		<-informer.Synced()
		for _, w := range informer.ByIndex("host", "h1") {
			fmt.Println("on h1:", w.Name)
		}
	}()
	log.Print(informer.Run(ctx))
}
