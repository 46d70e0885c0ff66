package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane"
	"bocage.dev/bocage/dataplane/agent"
	"bocage.dev/bocage/dataplane/discover"
	"bocage.dev/bocage/deception"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/identity"
	"bocage.dev/bocage/inspection/suricata"
	"bocage.dev/bocage/stream"
	"bocage.dev/bocage/stream/jetstream"
)

// eventsLog is the log that agents append to and recognition reads.
const eventsLog = "EVENTS"

// pollEvery bounds how long an agent can miss a new ruleset whose notice was lost.
const pollEvery = 2 * time.Second

// statusEvery bounds the age of a Host's status.
const statusEvery = 5 * time.Second

// agentProcess wires the privileged functions of one host.
type agentProcess struct {
	cfg    Config
	logger *slog.Logger
	kernel string
	// registry collects the metrics of the whole process.
	registry *prometheus.Registry

	loop       *agent.Agent
	discoverer *discover.Discoverer
	sighted    chan struct{} // tells reportSightings that it changed
	dataplane  *dataplane.Dataplane
	inspection atomic.Pointer[suricata.Engine]  // nil until it has started
	decoys     atomic.Pointer[deception.Decoys] // likewise
	events     *publisher
	exchange   stream.Exchange // set once joined
	conn       *jetstream.Conn // likewise
	ruleset    atomic.Pointer[bocage.Ruleset]
	faults     faultBoard
	placing    sync.Mutex                             // held while profiles and decoys are handed on; guards loaded
	loaded     map[uint16]bool                        // profiles that the engine has
	refused    atomic.Pointer[map[string]string]      // profiles that it does not take, with its words
	since      atomic.Pointer[time.Time]              // when the generation in force came into force
	applied    chan struct{}                          // tells reportStatus that it changed
	hidden     atomic.Pointer[[]string]               // uplinks that are left alone
	failsafe   atomic.Pointer[[]bocage.FailsafeEntry] // the same, and for whom
	starter    starter
	bundle     *identity.Bundle                // set once joined
	joined     atomic.Bool                     // there is an exchange
	reverted   atomic.Uint64                   // generation that nobody confirmed and that was left; 0: none
	answer     atomic.Pointer[statusAnswer]    // what a controller last said; nil before
	answered   atomic.Pointer[time.Time]       // when a controller last answered
	svid       atomic.Pointer[identity.Keeper] // set once joined
	process    processFacts
}

// processFacts are what an agent's process can say of itself.
type processFacts struct {
	pid, user int
	started   time.Time
}

// runAgent keeps enforcement going first of all: kernel state is taken over and
// the last ruleset applied before anything is asked of the network. Standing is called
// once that is so: whoever starts workloads may go on.
func runAgent(ctx context.Context, cfg Config, registry *prometheus.Registry, standing func()) error {
	a := &agentProcess{cfg: cfg, logger: cfg.Logger.With("host", cfg.Host), registry: registry, applied: make(chan struct{}, 1), sighted: make(chan struct{}, 1),
		process: processFacts{os.Getpid(), os.Geteuid(), time.Now().UTC()}}
	a.starter.find(time.Now())
	var err error
	if a.kernel, err = host.Kernel(); err != nil {
		return err
	}
	// Before anything is touched: an agent that has never joined has nothing to
	// enforce, and one that cannot join should leave nothing.
	if _, err := loadCredentials(cfg.agentDir("identity"), cfg.TrustDomain); errors.Is(err, fs.ErrNotExist) {
		if _, err := obtainCredentials(ctx, cfg); err != nil {
			return err
		}
	}
	if a.events, err = newPublisher(cfg.Host, cfg.agentDir("spool"), a.logger); err != nil {
		return err
	}
	if a.dataplane, err = dataplane.Open(cfg.Dataplane()); err != nil {
		return fmt.Errorf("open the dataplane: %w", err)
	}
	defer a.dataplane.Close()
	registry.MustRegister(&agentCollector{a})
	group, ctx := errgroup.WithContext(ctx)
	joined := make(chan struct{})
	rulesets := &rulesetSource{agent: a, joined: joined, notice: make(chan struct{}, 1)}
	loop, err := agent.New(agent.Config{
		Host: cfg.Host, Dataplane: reportedDataplane{a.dataplane, a}, Rulesets: rulesets, Links: a.followLinks,
		Publish: a.publishFlows, Watch: cfg.WatchBridges, Uplinks: cfg.Uplinks, Logger: cfg.Logger,
	})
	if err != nil {
		return err
	}
	a.loop = loop
	if err := a.discovering(); err != nil {
		return err
	}
	group.Go(func() error { return a.discoverer.Run(ctx) })
	group.Go(func() error { return loop.Run(ctx) })
	group.Go(func() error {
		if a.awaitStanding(ctx); ctx.Err() == nil { // else a part of it has failed
			standing()
		}
		return nil
	})
	group.Go(func() error {
		return a.keepUp(ctx, "greetings", func(ctx context.Context) error { return a.dataplane.Listen(ctx, a.events.Greeting) })
	})
	if !cfg.NoDeception {
		a.faults.set("decoys", "the decoys are starting")
		group.Go(func() error { return a.keepUp(ctx, "decoys", a.runDecoys) })
	}
	if !cfg.NoInspection {
		a.faults.set("inspection", "the inspection engine is starting")
		group.Go(func() error { return a.keepUp(ctx, "inspection", a.runInspection) })
	}
	group.Go(func() error { return a.connect(ctx, group, rulesets, joined) })
	group.Go(func() error { return a.serveHealth(ctx) })
	group.Go(func() error { return a.watchState(ctx) })
	group.Go(func() error { return a.followLosses(ctx) })
	if err := group.Wait(); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// standPatience is how long others wait for what was in force before to be so again: an
// agent that was never told anything has nothing to wait for.
const standPatience = 5 * time.Second

func (a *agentProcess) awaitStanding(ctx context.Context) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for begun := time.Now(); a.since.Load() == nil && time.Since(begun) < standPatience; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// reportedDataplane notes when a ruleset came into force, for the Host's status.
type reportedDataplane struct {
	*dataplane.Dataplane
	agent *agentProcess
}

// Apply implements agent.Dataplane.
func (d reportedDataplane) Apply(ruleset *bocage.Ruleset) error {
	if err := d.agent.guard(ruleset); err != nil {
		return err
	}
	return d.put(ruleset, d.Dataplane.Apply)
}

// Revert implements agent.Dataplane.
func (d reportedDataplane) Revert(ruleset *bocage.Ruleset) error {
	return d.put(ruleset, d.Dataplane.Revert)
}

// Amend implements agent.Dataplane. What is in force is told before what only tells
// of it is made.
func (d reportedDataplane) Amend(change dataplane.Change, after func() *bocage.Ruleset) error {
	a := d.agent
	if a.mayCut(change) {
		if err := a.guard(after()); err != nil {
			return err
		}
	}
	if err := d.Dataplane.Amend(change); err != nil {
		return err
	}
	now := time.Now().UTC()
	a.since.Store(&now)
	signal(a.applied)
	a.ruleset.Store(after())
	return nil
}

func (d reportedDataplane) put(ruleset *bocage.Ruleset, into func(*bocage.Ruleset) error) error {
	a := d.agent
	if err := into(ruleset); err != nil {
		return err
	}
	if before := a.ruleset.Load(); before == nil || before.Generation != ruleset.Generation {
		now := time.Now().UTC()
		a.since.Store(&now)
	}
	a.ruleset.Store(ruleset)
	signal(a.applied)
	// What only the ruleset before needed can go now.
	a.placing.Lock()
	defer a.placing.Unlock()
	if engine := a.inspection.Load(); engine != nil {
		a.loadProfiles(engine, ruleset.Profiles)
	}
	return nil
}

// keepUp runs a function that enforcement does not depend on. If it fails it is
// started again, and the host's status says so meanwhile.
func (a *agentProcess) keepUp(ctx context.Context, what string, run func(context.Context) error) error {
	for wait := time.Second; ; wait = min(2*wait, time.Minute) {
		begun := time.Now()
		err := run(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Since(begun) > time.Minute {
			wait = time.Second
		}
		a.logger.Error("function of the agent ended", "what", what, "again", wait, "error", err)
		a.faults.set(what, fmt.Sprintf("%s does not run: %v", what, err))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

func (a *agentProcess) runDecoys(ctx context.Context) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	decoys, err := deception.Start(ctx, deception.Config{
		Host: a.cfg.Host, Namespace: a.cfg.decoyNamespace(), Dir: a.cfg.agentDir("decoys"),
		Program: []string{program, "decoy-serve"}, Logger: a.logger,
	})
	if err != nil {
		return err
	}
	ifindex, mac := decoys.Port()
	if err := a.dataplane.SetDecoy(dataplane.DecoyPort{Ifindex: ifindex, MAC: mac}); err != nil {
		return err
	}
	a.faults.clear("decoys")
	a.placing.Lock()
	a.decoys.Store(decoys)
	if ruleset := a.ruleset.Load(); ruleset != nil {
		a.place(decoys, ruleset)
	}
	a.placing.Unlock()
	defer a.decoys.CompareAndSwap(decoys, nil)
	return decoys.Run(ctx, a.publishEngagement)
}

// place hands a ruleset's decoys on.
func (a *agentProcess) place(decoys *deception.Decoys, ruleset *bocage.Ruleset) {
	if err := decoys.Place(ruleset.Decoys); err != nil {
		a.logger.Error("place decoys", "generation", ruleset.Generation, "error", err)
		a.faults.set("placement", err.Error())
		return
	}
	a.faults.clear("placement")
}

// engineMTU is what the engine's links take at least, in bytes: jumbo frames, so that
// links that come later find room. Beyond it they grow with the enforcement points.
const engineMTU = 9216

// runInspection keeps the engine, and has it begin anew when an enforcement point's
// frames have become longer than its links take: they would be lost in silence.
func (a *agentProcess) runInspection(ctx context.Context) error {
	for ctx.Err() == nil {
		mtu := max(engineMTU, a.inspectedMTU())
		fits, outgrown := context.WithCancel(ctx)
		go every(fits, 2*time.Second, func() error {
			if a.inspectedMTU() > mtu {
				outgrown()
			}
			return nil
		})
		err := a.inspect(fits, mtu)
		longer := fits.Err() != nil
		outgrown()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case !longer:
			return err
		}
		a.logger.Info("inspection begins anew, for longer frames", "bytes", a.largestMTU())
		a.faults.set("inspection", "inspection begins anew, for longer frames: its flows follow their profile's failMode")
		if err := a.dataplane.SetInspection(dataplane.Inspection{}); err != nil { // its links go
			return err
		}
	}
	return nil
}

// inspectedMTU is how long frames get that are to be inspected, and notes whether there
// are some that cannot be.
func (a *agentProcess) inspectedMTU() int {
	mtu := a.largestMTU()
	a.noteFrames(mtu)
	return min(mtu, suricata.MaxMTU)
}

func (a *agentProcess) noteFrames(mtu int) {
	if mtu <= suricata.MaxMTU {
		a.faults.clear("inspection-mtu")
		return
	}
	a.faults.set("inspection-mtu", fmt.Sprintf("frames of %d bytes cannot be inspected, only up to %d: give the workloads' interfaces a smaller MTU", mtu, suricata.MaxMTU))
}

// largestMTU is the largest among the enforcement points' interfaces, in bytes.
func (a *agentProcess) largestMTU() int {
	var points []uint32
	for _, at := range a.dataplane.Attached() {
		points = append(points, at.Ifindex)
	}
	for _, w := range a.dataplane.Wires() {
		points = append(points, w.Inside, w.Outside)
	}
	links, err := host.Links("")
	if err != nil {
		a.logger.Warn("look for the largest frames", "error", err)
	}
	largest := 0
	for _, l := range links {
		if slices.Contains(points, l.Index) {
			largest = max(largest, l.MTU)
		}
	}
	return largest
}

func (a *agentProcess) inspect(ctx context.Context, mtu int) error {
	cfg := a.cfg.inspectionConfig()
	cfg.MTU = mtu
	engine, err := suricata.Start(ctx, cfg)
	if err != nil {
		return err
	}
	a.placing.Lock()
	a.inspection.Store(engine)
	if ruleset := a.ruleset.Load(); ruleset != nil {
		a.loadProfiles(engine, ruleset.Profiles)
	}
	a.placing.Unlock()
	defer a.inspection.CompareAndSwap(engine, nil)
	return engine.Run(ctx, a.publishInspection, func(up bool) { a.inspectionState(engine, up) })
}

// loadProfiles hands profiles on; placing is held. If the engine refuses them,
// those that it had stay.
func (a *agentProcess) loadProfiles(engine *suricata.Engine, profiles []bocage.Profile) {
	err := engine.Load(profiles)
	refused := map[string]string{}
	var signature *suricata.SignatureError
	if errors.As(err, &signature) {
		refused[signature.Profile] = signature.Error()
	}
	a.refused.Store(&refused)
	if err != nil {
		a.logger.Error("load inspection profiles", "error", err)
		a.faults.set("profiles", err.Error())
		return
	}
	a.loaded = map[uint16]bool{}
	for _, p := range profiles {
		a.loaded[p.Number] = true
	}
	a.faults.clear("profiles")
}

func (c Config) inspectionConfig() suricata.Config {
	return suricata.Config{
		Host: c.Host, Namespace: c.inspectionNamespace(),
		Dir: filepath.Join(c.RunDir, "inspection"), Logger: c.Logger,
	}
}

// inspectionState tells the dataplane whether steered flows have somewhere to go.
func (a *agentProcess) inspectionState(engine *suricata.Engine, up bool) {
	outside, inside := engine.Ports()
	if err := a.dataplane.SetInspection(dataplane.Inspection{Outside: outside, Inside: inside, Up: up}); err != nil {
		a.logger.Error("switch steering", "up", up, "error", err)
	}
	if up {
		a.faults.clear("inspection")
		a.logger.Info("inspection is up")
		return
	}
	a.faults.set("inspection", "the inspection engine is down: its flows follow their profile's failMode")
	a.logger.Warn("inspection is down")
}

func (a *agentProcess) publishFlows(_ context.Context, events []bocage.FlowEvent, cadences []bocage.Cadence) {
	a.events.Flows(events)
	a.events.Cadences(cadences)
}

func (a *agentProcess) publishInspection(e bocage.InspectionEvent) {
	e.Source, e.Destination = a.identities(e.Flow)
	a.events.Inspection(e)
}

func (a *agentProcess) publishEngagement(e bocage.EngagementEvent) {
	e.Source, e.Destination = a.identities(e.Flow)
	a.events.Engagement(e)
}

// identities names both ends of a flow by the ruleset in force.
func (a *agentProcess) identities(f bocage.Flow) (source, destination bocage.Identity) {
	ruleset := a.ruleset.Load()
	if ruleset == nil {
		return bocage.IdentityUnknown, bocage.IdentityUnknown
	}
	return ruleset.Lookup(f.Source).Identity, ruleset.Lookup(f.Destination).Identity
}

// connect joins, opens the one connection to the controllers, and starts what
// needs it. Until then, and whenever the connection is away, enforcement goes on.
func (a *agentProcess) connect(ctx context.Context, group *errgroup.Group, rulesets *rulesetSource, joined chan struct{}) error {
	have, err := obtainCredentials(ctx, a.cfg)
	if err != nil {
		return err
	}
	svid := identity.NewKeeper(have.svid, func(ctx context.Context, csr []byte) ([]byte, error) {
		return a.exchange.Ask(ctx, fmt.Sprintf(subjectRenew, a.cfg.Host), csr)
	}, func(renewed *identity.SVID) error { return renewed.Save(have.dir) }, a.logger)
	sign := func(kind string, payload []byte) ([]byte, error) { return svid.SVID().Sign(kind, payload) }
	a.svid.Store(svid)
	a.events.identify(have.svid.ID(), sign)
	group.Go(func() error { return a.events.Run(ctx) })
	conn, err := a.dial(ctx, svid, have.bundle)
	if err != nil {
		return err
	}
	defer conn.Close()
	a.exchange, a.conn = conn.Exchange(), conn
	a.bundle = have.bundle
	a.events.connect(conn.Log(eventsLog))
	a.joined.Store(true)
	close(joined)
	group.Go(func() error { return svid.Run(ctx) })
	group.Go(func() error {
		return a.exchange.Listen(ctx, subjectRevision, func(string, []byte) { signal(rulesets.notice) })
	})
	group.Go(func() error { return a.reportSightings(ctx) })
	return a.reportStatus(ctx)
}

// dial connects, for as long as it takes: a controller that is away, or that
// refuses this agent, is no reason to stop enforcing.
func (a *agentProcess) dial(ctx context.Context, svid *identity.Keeper, bundle *identity.Bundle) (*jetstream.Conn, error) {
	for wait := time.Second; ; wait = min(2*wait, time.Minute) {
		conn, err := jetstream.Connect(ctx, jetstream.ConnConfig{
			Addresses: a.cfg.Controllers, Bundle: bundle, SVID: svid.SVID, Logger: a.logger,
		})
		if err == nil {
			a.faults.clear("controller")
			return conn, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if time.Now().After(svid.SVID().Expires()) {
			err = fmt.Errorf("the agent's certificate expired on %s: start it once with a new token, made by `bocage agent token %s`: %w", moment(svid.SVID().Expires()), a.cfg.Host, err)
		}
		a.logger.Error("no controller takes this agent: the last ruleset stays in force", "again", wait, "error", err)
		a.faults.set("controller", err.Error())
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// faultText says everything that is wrong right now; empty if all is well.
func (a *agentProcess) faultText() string {
	var lines []string
	if text := a.faults.String(); text != "" {
		lines = append(lines, text)
	}
	status := a.loop.Status()
	for _, port := range status.Missing {
		if i := slices.IndexFunc(status.Attached, func(a dataplane.Attachment) bool {
			return a.Port.Identity == port.Identity && a.Port.Interface == port.Interface
		}); i >= 0 {
			lines = append(lines, fmt.Sprintf("%s of %s has another name now (interface %d), and is enforced on all the same: mend spec.interface", port.Interface, port.Workload, status.Attached[i].Ifindex))
			continue
		}
		lines = append(lines, fmt.Sprintf("%s of %s is not there to be enforced on", port.Interface, port.Workload))
	}
	for _, wire := range status.Cut {
		lines = append(lines, fmt.Sprintf("wire %s is cut: it needs both %s and %s", wire.Name, wire.Inside, wire.Outside))
	}
	for _, port := range status.Unfit {
		lines = append(lines, fmt.Sprintf("%s of %s carries no Ethernet frames, or is the host's own uplink: nothing is enforced on it", port.Interface, port.Workload))
	}
	return strings.Join(append(lines, status.Faults...), "; ")
}

// hostReport is what an agent tells the controllers of itself.
type hostReport struct {
	Status bocage.HostStatus `json:"status"`
}

// reportStatus tells the controllers what is in force, at once when the
// generation changes and every statusEvery otherwise.
func (a *agentProcess) reportStatus(ctx context.Context) error {
	const look = 100 * time.Millisecond // at what changes otherwise
	tick := time.NewTicker(look)
	defer tick.Stop()
	var sent time.Time
	var told report
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		case <-a.applied:
		}
		now := a.reportNow()
		if now == told && time.Since(sent) < statusEvery {
			continue
		}
		err := a.tell(ctx, now)
		if err != nil {
			a.logger.Debug("report status", "error", err)
			sent = time.Now().Add(time.Second - statusEvery) // again in a second
			continue
		}
		sent, told = time.Now(), now
	}
}

// tell reports to a controller, and heeds what it says to that.
func (a *agentProcess) tell(ctx context.Context, now report) error {
	report, err := json.Marshal(hostReport{a.status(now)})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	answer, err := a.exchange.Ask(ctx, fmt.Sprintf(subjectStatus, a.cfg.Host), report)
	if err != nil {
		return err
	}
	a.heed(answer)
	return nil
}

// reportNow is what there is to tell.
func (a *agentProcess) reportNow() report {
	return report{a.dataplane.Generation(), a.candidate().Generation, a.reverted.Load(), a.faultText()}
}

// heed takes what a controller says to a report.
func (a *agentProcess) heed(data []byte) {
	now := time.Now()
	a.answered.Store(&now)
	var answer statusAnswer
	if len(data) == 0 || json.Unmarshal(data, &answer) != nil {
		return // an older controller
	}
	a.answer.Store(&answer)
}

// report is what controllers are told of at once when it changes.
type report struct {
	generation, candidate, reverted uint64
	faults                          string
}

// candidate is what came of the ruleset that is evaluated beside the one in force.
func (a *agentProcess) candidate() dataplane.Candidate {
	candidate, err := a.dataplane.Candidate()
	if err != nil {
		a.logger.Warn("read what came of the candidate", "error", err)
	}
	return candidate
}

func (a *agentProcess) status(now report) bocage.HostStatus {
	candidate := a.candidate()
	status := bocage.HostStatus{
		Version: a.cfg.Version, Kernel: a.kernel, Generation: now.generation, LastSeen: time.Now().UTC(),
		Candidate: candidate.Generation, CandidateDiffers: int64(candidate.Differs), RevertedFrom: now.reverted,
	}
	if since := a.since.Load(); since != nil {
		status.Since = *since
	}
	loop := a.loop.Status()
	status.Ports = len(loop.Attached) + len(loop.Wires)
	var err error
	if status.Sessions, err = a.sessionsNow(); err != nil {
		a.logger.Debug("look for administrators' sessions", "error", err)
	}
	status.Failsafe = a.failsafeNow()
	if refused := a.refused.Load(); refused != nil {
		status.RefusedProfiles = *refused
	}
	ready := bocage.Condition{Type: bocage.ConditionReady, Status: "True", Reason: "Enforcing", LastTransitionTime: time.Now().UTC(),
		Message: fmt.Sprintf("generation %d is in force", now.generation)}
	if now.faults != "" {
		ready.Status, ready.Reason, ready.Message = "False", "Degraded", now.faults
	}
	if now.reverted != 0 {
		ready.Message += fmt.Sprintf("; nobody confirmed generation %d in time, so this host went back", now.reverted)
	}
	if loop.NotApplied != 0 {
		ready.Reason, ready.ObservedGeneration = notApplied, int64(loop.NotApplied)
	}
	status.Conditions = []bocage.Condition{ready}
	return status
}

// faultBoard collects what is wrong right now, by topic.
type faultBoard struct {
	mu     sync.Mutex // guards topics
	topics map[string]string
}

func (b *faultBoard) set(topic, text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.topics == nil {
		b.topics = map[string]string{}
	}
	b.topics[topic] = text
}

func (b *faultBoard) clear(topic string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.topics, topic)
}

func (b *faultBoard) has(topic string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, is := b.topics[topic]
	return is
}

// String lists the topics and what is wrong with each, sorted; empty if all is well.
func (b *faultBoard) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var lines []string
	for _, topic := range slices.Sorted(maps.Keys(b.topics)) {
		lines = append(lines, b.topics[topic])
	}
	return strings.Join(lines, "; ")
}

// Dataplane is what an agent's dataplane is made of: the same for who loads its
// programs and for who enforces by them.
func (c Config) Dataplane() dataplane.Config {
	made, _ := c.dataplane() // Complete said what is wrong with it
	return made
}

func (c Config) dataplane() (dataplane.Config, error) {
	return dataplane.Config{Host: c.Host, PinDir: c.PinDir(), DirectDelivery: c.DirectDelivery, Logger: c.Logger}.Resize(c.TableEntries)
}
