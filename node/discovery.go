package node

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/discover"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/store"
	"bocage.dev/bocage/stream"
)

// subjectSightings is where an agent tells what it sees; "*" is the host.
const subjectSightings = "agent.%s.workloads"

// sightingsEvery bounds the age of what controllers know of a host's workloads.
const sightingsEvery = 30 * time.Second

// sightingsAnswer is the answer: what came to nothing, and why.
type sightingsAnswer struct {
	Refused map[string]string `json:"refused,omitempty"`
}

// sources are the runtimes that the agent reads.
func (c Config) sources() ([]discover.SourceConfig, error) {
	if c.NoDiscovery {
		return nil, nil
	}
	if len(c.RuntimeSockets) == 0 {
		return discover.DefaultSources(), nil
	}
	var sources []discover.SourceConfig
	var faults []error
	for _, text := range c.RuntimeSockets {
		source, err := discover.ParseSource(text)
		sources, faults = append(sources, source), append(faults, err)
	}
	return sources, errors.Join(faults...)
}

func (c Config) discovery() (discover.Config, error) {
	sources, err := c.sources()
	config := discover.Config{Sources: sources, Rules: discover.Rules{Host: c.Host, Default: c.WorkloadNamespace, Trusted: c.TrustLabels}, Logger: c.Logger}
	return config, errors.Join(err, config.Validate())
}

// discovering makes the part that finds workloads.
func (a *agentProcess) discovering() error {
	config, err := a.cfg.discovery()
	if err != nil {
		return err
	}
	config.Each = func(found discover.Found) {
		a.loop.Discovered(found)
		signal(a.sighted)
	}
	a.discoverer, err = discover.New(config)
	return err
}

// reportSightings tells controllers what this host sees: at once when it changes.
func (a *agentProcess) reportSightings(ctx context.Context) error {
	subject := fmt.Sprintf(subjectSightings, a.cfg.Host)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var told [sha256.Size]byte
	var at time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		case <-a.sighted:
		}
		if !a.discoverer.Ready() {
			continue
		}
		question, err := json.Marshal(a.discoverer.Sightings())
		if err != nil {
			return err
		}
		sum := sha256.Sum256(question)
		if sum == told && time.Since(at) < sightingsEvery {
			continue
		}
		if err := a.tellSightings(ctx, subject, question); err != nil {
			a.logger.Debug("report workloads", "error", err)
			continue // at the next tick
		}
		told, at = sum, time.Now()
	}
}

func (a *agentProcess) tellSightings(ctx context.Context, subject string, question []byte) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	reply, err := a.exchange.Ask(ctx, subject, question)
	if err != nil {
		return err
	}
	var answer sightingsAnswer
	if err := json.Unmarshal(reply, &answer); err != nil {
		return fmt.Errorf("a controller's answer is damaged: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(answer.Refused)) {
		a.logger.Debug("workload not taken over", "workload", name, "why", answer.Refused[name])
	}
	return nil
}

// shown is what the agent's loop may see of the links: all but the host's uplinks.
// A bridge that is one is shown for its ports' sake, as something that nothing can
// be attached to.
func shown(links []host.Link, hide func(host.Link) bool) []host.Link {
	var out []host.Link
	for _, l := range links {
		if hide(l) {
			if l.Kind != "bridge" {
				continue
			}
			l.Ethernet = false
		}
		out = append(out, l)
	}
	return out
}

// sightingsDesk takes over what agents see.
type sightingsDesk struct {
	vouch func(ctx context.Context, host string, seen bocage.Sightings, settled map[string]bool) (map[string]string, error)
	store store.Store

	mu   sync.Mutex // guards taken
	desk map[string]*hostDesk
}

// hostDesk is one host's: what it told last, with what came of it.
type hostDesk struct {
	mu     sync.Mutex // held while its workloads are written, in order
	sum    [sha256.Size]byte
	at     time.Time
	answer []byte
	// taken are the sightings that came to workloads; whole is when all of them were
	// last looked at: people may have changed any since.
	taken map[string][sha256.Size]byte
	whole time.Time
}

func newSightingsDesk(s store.Store, vouch func(context.Context, string, bocage.Sightings, map[string]bool) (map[string]string, error)) *sightingsDesk {
	return &sightingsDesk{vouch: vouch, store: s, desk: map[string]*hostDesk{}}
}

// Serve answers agents until ctx ends.
func (d *sightingsDesk) Serve(ctx context.Context, exchange stream.Exchange) error {
	return exchange.Serve(ctx, fmt.Sprintf(subjectSightings, "*"), func(ctx context.Context, request stream.Request) ([]byte, error) {
		name, err := senderHost(request)
		if err != nil {
			return nil, err
		}
		return d.take(ctx, name, request.Data)
	})
}

func (d *sightingsDesk) of(name string) *hostDesk {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.desk[name] == nil {
		d.desk[name] = &hostDesk{}
	}
	return d.desk[name]
}

// take writes what a host sees. What it said before, and what people have not
// changed since, is not looked at again for a while.
func (d *sightingsDesk) take(ctx context.Context, name string, data []byte) ([]byte, error) {
	desk := d.of(name)
	desk.mu.Lock()
	defer desk.mu.Unlock()
	sum := sha256.Sum256(data)
	if sum == desk.sum && time.Since(desk.at) < sightingsEvery/2 {
		return desk.answer, nil
	}
	var seen bocage.Sightings
	if err := json.Unmarshal(data, &seen); err != nil {
		return nil, errors.New("the report of the agent is damaged")
	}
	sums, settled := desk.settled(seen)
	refused, err := d.vouch(ctx, name, seen, settled)
	if err != nil {
		desk.whole = time.Time{}
		return nil, err
	}
	maps.DeleteFunc(sums, func(name string, _ [sha256.Size]byte) bool { return refused[name] != "" })
	desk.taken = sums
	if err := d.conclude(ctx, name, seen, refused); err != nil {
		return nil, err
	}
	answer, err := json.Marshal(sightingsAnswer{refused})
	if err == nil {
		desk.sum, desk.at, desk.answer = sum, time.Now(), answer
	}
	return answer, err
}

// settled tells sightings that came to workloads before and are the same still. Now
// and then none are.
func (h *hostDesk) settled(seen bocage.Sightings) (sums map[string][sha256.Size]byte, settled map[string]bool) {
	sums, settled = map[string][sha256.Size]byte{}, map[string]bool{}
	whole := time.Since(h.whole) < sightingsEvery
	if !whole {
		h.whole = time.Now()
	}
	for _, s := range seen.Sightings {
		data, err := json.Marshal(s)
		if err != nil || s.Stopped {
			continue
		}
		name, sum := s.NamespacedName(), sha256.Sum256(data)
		sums[name] = sum
		before, known := h.taken[name]
		settled[name] = whole && known && before == sum
	}
	return sums, settled
}

// conclude says on the Host what came of its sightings.
func (d *sightingsDesk) conclude(ctx context.Context, name string, seen bocage.Sightings, refused map[string]string) error {
	kind, _ := bocage.KindNamed("Host")
	conditions := discoveryConditions(seen, refused, time.Now().UTC())
	err := store.UpdateObject(ctx, d.store, kind, "", name, func(h *bocage.Host) (bool, error) {
		changed := false
		for _, c := range conditions {
			i := slices.IndexFunc(h.Status.Conditions, func(o bocage.Condition) bool { return o.Type == c.Type })
			if i >= 0 && h.Status.Conditions[i].Status == c.Status && h.Status.Conditions[i].Reason == c.Reason && h.Status.Conditions[i].Message == c.Message {
				continue
			}
			h.Status.Conditions, changed = bocage.SetCondition(h.Status.Conditions, c), true
		}
		return changed, nil
	})
	if !errors.Is(err, store.ErrNotFound) {
		return err
	}
	// Its first status is on the way, or comes to the same.
	h := &bocage.Host{ObjectMeta: store.NewMeta(name, time.Now()), Status: bocage.HostStatus{Conditions: conditions}}
	if _, err = store.PutObject(ctx, d.store, kind, h, store.Absent); errors.Is(err, store.ErrConflict) {
		return nil
	}
	return err
}

// discoveryConditions tells people what a host sees and what came of it.
func discoveryConditions(seen bocage.Sightings, refused map[string]string, now time.Time) []bocage.Condition {
	running := 0
	for _, s := range seen.Sightings {
		if !s.Stopped {
			running++
		}
	}
	discovered := bocage.Condition{Type: bocage.ConditionDiscovered, Status: "True", Reason: "Complete", LastTransitionTime: now,
		Message: fmt.Sprintf("%d workloads discovered, all of them in the inventory", running)}
	if len(seen.Sources) == 0 {
		discovered.Reason, discovered.Message = "NothingToRead", "no container runtime is read: workloads are those that are declared"
	}
	var faults []string
	for _, name := range slices.Sorted(maps.Keys(refused)) {
		faults = append(faults, fmt.Sprintf("%s is not in the inventory: %s", name, strings.ReplaceAll(refused[name], "\n", "; ")))
	}
	if len(faults) > 0 {
		discovered.Status, discovered.Reason = "False", "Refused"
	}
	if len(seen.Failing) > 0 {
		discovered.Status, discovered.Reason = "False", "RuntimeUnreachable"
	}
	if faults = append(slices.Clone(seen.Failing), faults...); len(faults) > 0 {
		discovered.Message = brief(faults)
	}
	governed := bocage.Condition{Type: bocage.ConditionGoverned, Status: "True", Reason: "Governed", LastTransitionTime: now,
		Message: "nothing is known that runs without an enforcement point in front of it"}
	if len(seen.Ungoverned) > 0 {
		governed.Status, governed.Reason, governed.Message = "False", "NotGoverned", brief(seen.Ungoverned)
	}
	return []bocage.Condition{discovered, governed}
}

// brief joins lines to a text that is not too long to read.
func brief(lines []string) string {
	const most, length = 10, 1024
	text := strings.Join(lines[:min(len(lines), most)], "; ")
	text = strings.ToValidUTF8(text[:min(len(text), length)], "")
	if len(lines) > most {
		text += fmt.Sprintf("; and %d more", len(lines)-most)
	}
	return text
}
