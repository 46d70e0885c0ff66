package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api"
	"bocage.dev/bocage/identity"
	"bocage.dev/bocage/store"
	"bocage.dev/bocage/store/etcd"
)

// serve fills a store and serves it until ctx ends.
func serve(ctx context.Context, dir string, s settings) error {
	etcd.UseThreads()
	st, err := etcd.Open(etcd.Config{Dir: filepath.Join(dir, "store")})
	if err != nil {
		return err
	}
	defer st.Close()
	if err := fill(ctx, st, s); err != nil {
		return fmt.Errorf("fill the store: %w", err)
	}
	authority, err := identity.OpenAuthority(filepath.Join(dir, "authority"), trustDomain)
	if err != nil {
		return err
	}
	if err := identity.SaveBundle(filepath.Join(dir, "bundle"), authority.Bundle()); err != nil {
		return err
	}
	svid, err := authority.IssueSVID("/controller/bench", 24*time.Hour, identity.IssueOptions{DNSNames: []string{"localhost"}})
	if err != nil {
		return err
	}
	registry, ok := prometheus.DefaultRegisterer.(*prometheus.Registry) // where etcd counts
	if !ok {
		return errors.New("the default registry of Prometheus is another's")
	}
	trail := ""
	if s.Trail {
		trail = filepath.Join(dir, "audit")
	}
	server, err := api.New(api.Config{
		Registry: registry, AuditDir: trail, Node: "bench",
		Store: st, TrustDomain: trustDomain, Listen: "127.0.0.1:0", AdminToken: adminToken,
		SVID: func() *identity.SVID { return svid }, Bundle: authority.Bundle(),
		RequestsPerSecond: 1e6, MaxWatches: 2*s.Watchers + 100, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	if s.Profile != "" {
		profiling, stop := context.WithCancel(ctx)
		var profiled sync.WaitGroup
		defer profiled.Wait()
		defer stop()
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGUSR1)
		profiled.Go(func() { profile(profiling, s.Profile, signals) })
	}
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	addresses, err := server.Addresses(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stdout, addresses[0])
	return <-done
}

// profile writes a CPU profile from one signal to the next.
func profile(ctx context.Context, path string, signals <-chan os.Signal) {
	wait := func() bool {
		select {
		case <-signals:
			return true
		case <-ctx.Done():
			return false
		}
	}
	if !wait() {
		return
	}
	file, err := os.Create(path)
	if err == nil {
		err = pprof.StartCPUProfile(file)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: profile:", err)
		return
	}
	wait()
	pprof.StopCPUProfile()
	if err := file.Close(); err != nil {
		fmt.Fprintln(os.Stderr, "bench: profile:", err)
	}
}

// fill writes the workloads, as many at a time as one write takes.
func fill(ctx context.Context, st store.Store, s settings) error {
	kind, _ := bocage.KindNamed("Workload")
	if _, err := st.Get(ctx, kind.Key(workloadName(0, s))); err == nil {
		return nil // it was filled before
	}
	var ops []store.Op
	for i := range s.Objects {
		namespace, name := workloadName(i, s)
		meta := store.NewMeta(name, time.Now())
		meta.Namespace = namespace
		meta.Labels = map[string]string{"app": fmt.Sprintf("app-%d", i%50), "tier": []string{"front", "middle", "back"}[i%3]}
		meta.Annotations = map[string]string{"bocage.dev/source": fmt.Sprintf("estate/%s.yaml:%d", namespace, 1+i/s.Namespaces)}
		value, err := store.EncodeObject(kind, &bocage.Workload{
			ObjectMeta: meta,
			Spec: bocage.WorkloadSpec{
				Host: fmt.Sprintf("host-%d", i%1000), Interface: fmt.Sprintf("veth%d", i),
				Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})},
			},
			Status: bocage.WorkloadStatus{Identity: bocage.IdentityFirst + bocage.Identity(i), SPIFFEID: "spiffe://" + trustDomain + "/workload/" + namespace + "/" + name},
		})
		if err != nil {
			return err
		}
		ops = append(ops, store.Op{Key: kind.Key(namespace, name), Value: value, IfWas: store.AnyRevision})
		if len(ops) == 1000 || i == s.Objects-1 {
			if _, err := st.Apply(ctx, ops...); err != nil {
				return err
			}
			ops = ops[:0]
		}
	}
	return nil
}

func workloadName(i int, s settings) (namespace, name string) {
	return fmt.Sprintf("ns-%04d", i%s.Namespaces), fmt.Sprintf("workload-%06d", i)
}
