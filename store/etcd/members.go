package etcd

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// lookEvery is how often the members of a cluster are asked what they run: they can
	// come, go, and be upgraded at any time.
	lookEvery = 30 * time.Second
	// lookPatience is how long each has for an answer.
	lookPatience = 3 * time.Second
)

// members knows which etcd each member of a cluster runs.
//
// Who asks an etcd before 3.4.31 or 3.5.13 how far a watch is may be told a revision
// whose changes are still to come, and may wait for an answer in vain. Those are asked
// with fences instead, unless every member is known to be newer.
type members struct {
	logger *slog.Logger
	known  atomic.Pointer[membership]
}

// membership is what was found last.
type membership struct {
	versions map[uint64]string // "" where it is not known
	all      bool              // every one may be asked how far a watch is
}

// doubt says which members are asked with fences, and why.
func (m *membership) doubt() string {
	if m != nil && m.all {
		return ""
	}
	if m == nil || len(m.versions) == 0 {
		return "the members of etcd did not say which version they run"
	}
	var old []string
	for _, version := range slices.Sorted(maps.Values(m.versions)) {
		switch {
		case version == "":
			version = "a version that is not known, since they do not answer"
		case tellsProgress(version):
			continue
		}
		if !slices.Contains(old, version) {
			old = append(old, version)
		}
	}
	return fmt.Sprintf("members of etcd run %s", strings.Join(old, " and "))
}

// mayTell reports whether etcd, or one member of it, may be believed how far a watch is.
func (s *Store) mayTell(member uint64) bool {
	if s.engine != nil {
		return true
	}
	m := s.members.known.Load()
	if m == nil {
		return false
	}
	if member == 0 {
		return m.all
	}
	return m.versions[member] != "" && tellsProgress(m.versions[member])
}

// Doubt says why this process has to write into an etcd elsewhere to know how far its
// watches are: versions that answer too early. It is empty if it has not to.
func (s *Store) Doubt() string {
	if s.engine != nil {
		return ""
	}
	return s.members.known.Load().doubt()
}

// watchMembers looks at the members until the store is closed.
func (s *Store) watchMembers() {
	again := time.NewTicker(lookEvery)
	defer again.Stop()
	for {
		select {
		case <-again.C:
			s.lookAtMembers(s.ctx)
		case <-s.ctx.Done():
			return
		}
	}
}

// lookAtMembers asks every member what it runs, each by the addresses that it may
// have: those that were given, and those that it gives itself.
func (s *Store) lookAtMembers(ctx context.Context) {
	was, is := s.members.known.Load(), &membership{versions: map[uint64]string{}}
	defer func() {
		if ctx.Err() != nil {
			return
		}
		s.members.known.Store(is)
		if doubt := is.doubt(); doubt != was.doubt() || was == nil {
			s.members.say(doubt, was)
		}
	}()
	listing, cancel := context.WithTimeout(ctx, lookPatience)
	list, err := s.client.MemberList(listing)
	cancel()
	if err != nil || len(list.Members) == 0 {
		return
	}
	var mu sync.Mutex // guards is.versions
	for _, member := range list.Members {
		is.versions[member.ID] = ""
	}
	ask := func(addresses []string) {
		var all sync.WaitGroup
		for _, address := range addresses {
			all.Go(func() {
				asking, cancel := context.WithTimeout(ctx, lookPatience)
				defer cancel()
				status, err := s.client.Status(asking, address)
				if err != nil {
					return
				}
				mu.Lock()
				defer mu.Unlock()
				id := status.Header.GetMemberId()
				if _, member := is.versions[id]; member && (is.versions[id] == "" || !tellsProgress(status.Version)) {
					is.versions[id] = status.Version
				}
			})
		}
		all.Wait()
	}
	ask(s.client.Endpoints())
	var others []string
	for _, member := range list.Members {
		if is.versions[member.ID] == "" {
			others = append(others, member.ClientURLs...)
		}
	}
	ask(others)
	is.all = true
	for _, version := range is.versions {
		is.all = is.all && version != "" && tellsProgress(version)
	}
}

// say logs once what has changed.
func (m *members) say(doubt string, was *membership) {
	switch {
	case doubt != "":
		m.logger.Warn("etcd may answer too early how far a watch is: a small key is written where that has to be known, until all members run 3.4.31, 3.5.13, 3.6 or later", "because", doubt)
	case was != nil:
		m.logger.Info("every member of etcd answers rightly how far a watch is: no key is written for that any more")
	}
}

// tellsProgress reports whether an etcd answers how far a watch is once everything
// before has been sent. Whoever changed a version's name may have changed other things.
func tellsProgress(version string) bool {
	parts := strings.Split(version, ".")
	if len(parts) != 3 {
		return false
	}
	var n [3]int
	for i, part := range parts {
		var err error
		if n[i], err = strconv.Atoi(part); err != nil || n[i] < 0 {
			return false
		}
	}
	switch {
	case n[0] != 3:
		return n[0] > 3
	case n[1] == 4:
		return n[2] >= 31
	case n[1] == 5:
		return n[2] >= 13
	}
	return n[1] > 5
}
