package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api"
	"bocage.dev/bocage/identity"
	"bocage.dev/bocage/policy"
	"bocage.dev/bocage/recognition"
	"bocage.dev/bocage/recognition/lake"
	"bocage.dev/bocage/store"
	"bocage.dev/bocage/stream"
	"bocage.dev/bocage/stream/jetstream"
)

// eventsBytes bounds the log of events; the lake keeps what has left it.
const eventsBytes = 2 << 30

// controllerProcess wires api, policy, recognition and the engines.
type controllerProcess struct {
	cfg       Config
	logger    *slog.Logger
	authority *identity.Authority
	svid      atomic.Pointer[identity.SVID] // in force, for connections
	signer    atomic.Pointer[identity.SVID] // in force, for rulesets
	store     store.Store
	site      *member // nil: the store is its own
	clock     *siteClock
	transport *jetstream.Server
	exchange  stream.Exchange
	log       stream.Log
	tokens    *identity.Tokens
	names     *names
	policy    *policy.Policy
	lake      *lake.Lake
	flows     *flowReader
	registry  *prometheus.Registry
	// administrators are people who use the API here and may change policy.
	administrators administratorBoard
}

// openController constructs everything in the order of need; close undoes it.
func openController(ctx context.Context, cfg Config, registry *prometheus.Registry) (_ *controllerProcess, err error) {
	c := &controllerProcess{cfg: cfg, logger: cfg.Logger, registry: registry, clock: newSiteClock(cfg.clock)}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	if c.store, err = openStore(ctx, cfg); err != nil {
		return nil, fmt.Errorf("open the store: %w", err)
	}
	authority, err := openAuthority(ctx, cfg, c.store)
	if err != nil {
		return nil, fmt.Errorf("open the certificate authority: %w", err)
	}
	c.authority = authority.By(c.clock.Now)
	instance, err := instanceOf(cfg.controllerDir("instance"))
	if err != nil {
		return nil, err
	}
	if len(cfg.Etcd.Endpoints) > 0 {
		if c.site, err = joinSite(ctx, cfg, instance, c.store, c.clock); err != nil {
			return nil, fmt.Errorf("join the site: %w", err)
		}
		registry.MustRegister(c.clock)
	}
	if err := c.issue(); err != nil {
		return nil, err
	}
	if err := c.issueSigner(); err != nil {
		return nil, err
	}
	c.transport, err = jetstream.StartServer(jetstream.ServerConfig{
		Dir: cfg.controllerDir("events"), Listen: cfg.TransportListen,
		SVID: c.svid.Load, Bundle: c.authority.Bundle(), MaxBytes: eventsBytes, Logger: c.logger,
	})
	if err != nil {
		return nil, fmt.Errorf("start the transport: %w", err)
	}
	c.exchange = c.transport.Exchange()
	if c.log, err = c.transport.Log(eventsLog, "events.*"); err != nil {
		return nil, fmt.Errorf("open the log of events: %w", err)
	}
	c.tokens = &identity.Tokens{Store: c.store, Bundle: c.authority.Bundle()}
	c.names = newNames(c.store, c.logger)
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c.lake, err = lake.Open(lake.Config{
		Dir: cfg.controllerDir("lake"), QueryProgram: []string{program, "lake-query"}, Name: c.names.Name, Logger: c.logger,
	})
	if err != nil {
		return nil, fmt.Errorf("open the history: %w", err)
	}
	c.policy, err = policy.New(policy.Config{
		Store: c.store, Logger: c.logger, Now: c.clock.Now, TwoPerson: cfg.TwoPerson,
		Node: cfg.Host, Instance: instance, Numbered: readNumbered(cfg.controllerDir(numberedFile), c.logger), Edges: func(ctx context.Context) ([]bocage.Edge, error) { return c.edges(ctx, time.Time{}) }, Usage: c.usage,
		Sign: c.sign,
		Notify: func(generation uint64) {
			number := strconv.AppendUint(nil, generation, 10)
			if err := c.exchange.Notify(ctx, subjectRevision, number); err != nil {
				c.logger.Debug("notify agents", "generation", generation, "error", err)
			}
		},
	})
	if err != nil {
		return nil, err
	}
	c.flows = &flowReader{log: c.log, open: openBatch(c.authority.Bundle()), names: c.names, decider: c.decider}
	return c, nil
}

func (c *controllerProcess) issue() error {
	svid, err := c.authority.IssueSVID("/controller/"+c.cfg.Host, controllerLife, identity.IssueOptions{
		DNSNames: []string{"localhost", c.cfg.Host}, Addresses: listenAddresses(c.cfg),
	})
	if err != nil {
		return fmt.Errorf("issue the controller's certificate: %w", err)
	}
	c.svid.Store(svid)
	return nil
}

// issueSigner makes the certificate that signs rulesets, which agents may take long
// after they were signed. Its key lives in this process only.
func (c *controllerProcess) issueSigner() error {
	signer, err := c.authority.IssueSVID("/controller/"+c.cfg.Host, signerLife)
	if err != nil {
		return fmt.Errorf("issue the certificate that signs rulesets: %w", err)
	}
	c.signer.Store(signer)
	return nil
}

// sign puts what is for agents into an envelope.
func (c *controllerProcess) sign(kind string, payload []byte) ([]byte, error) {
	return c.signer.Load().Sign(kind, payload)
}

func listenAddresses(cfg Config) []netip.Addr {
	addresses := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	for _, listen := range []string{cfg.APIListen, cfg.TransportListen} {
		if at, err := netip.ParseAddrPort(listen); err == nil && !at.Addr().IsUnspecified() {
			addresses = append(addresses, at.Addr())
		}
	}
	return addresses
}

// run serves until ctx ends or a part fails for good. ready is closed when the
// API listens.
func (c *controllerProcess) run(ctx context.Context, ready chan<- struct{}) error {
	open := openBatch(c.authority.Bundle())
	recognizer, err := recognition.New(recognition.Config{
		Store: c.store, Log: c.log, Bundle: open, Node: c.cfg.Host, Now: c.clock.Now,
		QuarantineTTL: c.cfg.QuarantineFor, DecoyTTL: c.cfg.QuarantineFor, Logger: c.logger,
	})
	if err != nil {
		return err
	}
	c.registry.MustRegister(recognizer.Collector(), c.lake.Collector(), c.policy.Collector())
	server, err := c.newAPI(ctx)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.live(ctx) })
	group.Go(func() error { return c.names.Run(ctx) })
	group.Go(func() error { return c.policy.Run(ctx) })
	group.Go(func() error { return recognizer.Run(ctx) })
	group.Go(func() error { return c.lake.Land(ctx, c.log, open) })
	group.Go(func() error { return serveJoin(ctx, c.exchange, c.authority, c.tokens, c.logger) })
	group.Go(func() error { return c.serveRenewals(ctx) })
	group.Go(func() error { return c.serveRulesets(ctx) })
	group.Go(func() error { return c.servePieces(ctx) })
	group.Go(func() error { return c.serveStatus(ctx) })
	group.Go(func() error { return newSightingsDesk(c.store, server.Vouch).Serve(ctx, c.exchange) })
	group.Go(func() error { return c.keepCertificate(ctx) })
	group.Go(func() error { return c.keepNumbered(ctx) })
	group.Go(func() error { return c.trimLog(ctx, recognizer) })
	group.Go(func() error { return c.watchStore(ctx) })
	group.Go(func() error { return c.endAdminToken(ctx) })
	group.Go(func() error { return c.noticeSilence(ctx) })
	group.Go(func() error { return server.Run(ctx) })
	group.Go(func() error {
		if _, err := server.Addresses(ctx); err != nil {
			return err
		}
		close(ready)
		return nil
	})
	return group.Wait()
}

// live takes part in the site, if there is one.
func (c *controllerProcess) live(ctx context.Context) error {
	if c.site == nil {
		return nil
	}
	c.site.moved = c.timeMoved
	return c.site.run(ctx)
}

// timeMoved makes again, when the agreed time is suddenly another, what was made by
// the time before: certificates that begin only later would be refused, and what a
// clock that was ahead took as ended goes on.
func (c *controllerProcess) timeMoved() {
	if err := errors.Join(c.issue(), c.issueSigner()); err != nil {
		c.logger.Error("renew the controller's certificates", "error", err)
	}
	c.policy.TimeMoved()
}

// doubt says why this controller cannot ask its etcd how far a watch is.
func (c *controllerProcess) doubt() string {
	if doubting, ok := c.store.(interface{ Doubt() string }); ok {
		return doubting.Doubt()
	}
	return ""
}

// watchStore ends the process when its store has ended itself, so that whoever
// supervises it starts it again.
func (c *controllerProcess) watchStore(ctx context.Context) error {
	failed, ok := c.store.(interface {
		Failed() <-chan struct{}
		Failure() error
	})
	if !ok {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-failed.Failed():
	}
	if len(c.cfg.Etcd.Endpoints) > 0 {
		return fmt.Errorf("the store of the site: %w", failed.Failure())
	}
	return errors.New("the store has ended itself, as it does when its disk is full to the last byte: make room and start again; nothing acknowledged is lost")
}

// keepCertificate renews the controller's own certificate at half of its life. It looks
// often, since a machine that sleeps counts no time and its certificate ends all the same.
func (c *controllerProcess) keepCertificate(ctx context.Context) error {
	return every(ctx, time.Minute, func() error {
		if c.clock.Now().Before(c.svid.Load().RenewAt()) {
			return nil
		}
		if err := c.issue(); err != nil {
			c.logger.Error("renew the controller's certificate", "error", err)
		}
		return nil
	})
}

// every does something again and again, first after a while, until the context ends
// or it fails.
func every(ctx context.Context, while time.Duration, do func() error) error {
	tick := time.NewTicker(while)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			if err := do(); err != nil {
				return err
			}
		}
	}
}

// senderHost returns the host of an agent that asked on its own subject.
func senderHost(request stream.Request) (string, error) {
	_, host, ok := strings.Cut(request.Sender, "/agent/")
	if !ok || !strings.HasPrefix(request.Subject, "agent."+host+".") {
		return "", fmt.Errorf("%s may not ask on %s", request.Sender, request.Subject)
	}
	return host, nil
}

func (c *controllerProcess) serveRulesets(ctx context.Context) error {
	return c.exchange.Serve(ctx, fmt.Sprintf(subjectRuleset, "*"), func(ctx context.Context, request stream.Request) ([]byte, error) {
		host, err := senderHost(request)
		if err != nil {
			return nil, err
		}
		var question rulesetQuestion
		if err := json.Unmarshal(request.Data, &question); err != nil {
			return nil, errors.New("the request is no question for a ruleset")
		}
		answer, err := c.policy.Answer(ctx, host, policy.Question{Have: question.Have, Candidate: question.Candidate, Confirmed: question.Confirmed, Base: question.Base, Pieces: question.Pieces,
			Left: question.Left, Proves: question.Proves, Shown: len(question.Proofs) > 0, Proved: c.proved(host, question.Proofs)})
		if err != nil || answer.Empty() {
			return nil, err
		}
		return json.Marshal(rulesetAnswer{Confirm: answer.Confirm, Ruleset: answer.Ruleset, Amendment: answer.Amendment, Candidate: answer.Candidate, NoCandidate: answer.NoCandidate,
			Parcel: answer.Parcel, Prove: answer.Prove})
	})
}

// servePieces gives agents what no message takes.
func (c *controllerProcess) servePieces(ctx context.Context) error {
	return c.exchange.Serve(ctx, fmt.Sprintf(subjectPiece, "*"), func(ctx context.Context, request stream.Request) ([]byte, error) {
		host, err := senderHost(request)
		if err != nil {
			return nil, err
		}
		var question pieceQuestion
		if err := json.Unmarshal(request.Data, &question); err != nil {
			return nil, errors.New("the request is no question for a piece")
		}
		return c.policy.Piece(ctx, host, question.Parcel, question.Number)
	})
}

func (c *controllerProcess) serveRenewals(ctx context.Context) error {
	return c.exchange.Serve(ctx, fmt.Sprintf(subjectRenew, "*"), func(_ context.Context, request stream.Request) ([]byte, error) {
		host, err := senderHost(request)
		if err != nil {
			return nil, err
		}
		return c.authority.Issue("/agent/"+host, request.Data, agentLife)
	})
}

// serveStatus writes what agents report into their Host objects.
func (c *controllerProcess) serveStatus(ctx context.Context) error {
	kind, _ := bocage.KindNamed("Host")
	return c.exchange.Serve(ctx, fmt.Sprintf(subjectStatus, "*"), func(ctx context.Context, request stream.Request) ([]byte, error) {
		name, err := senderHost(request)
		if err != nil {
			return nil, err
		}
		var report hostReport
		if err := json.Unmarshal(request.Data, &report); err != nil {
			return nil, errors.New("the report of the agent is damaged")
		}
		ready := readyOf(report.Status, c.clock.Now())
		report.Status.LastSeen = c.clock.Now().UTC() // by this clock, whatever the agent's says
		report.Status.Conditions = []bocage.Condition{ready}
		report.Status.RefusedProfiles = cutWords(report.Status.RefusedProfiles)
		report.Status.Sessions = report.Status.Sessions[:min(len(report.Status.Sessions), mostSessions)]
		report.Status.Failsafe = report.Status.Failsafe[:min(len(report.Status.Failsafe), mostSessions)]
		report.Status.RiskAccepted = bocage.RiskAcceptance{} // is not for agents to say
		err = store.UpdateObject(ctx, c.store, kind, "", name, func(h *bocage.Host) (bool, error) {
			report.Status.Conditions = bocage.SetCondition(h.Status.Conditions, ready)
			if report.Status.LastSeen.Before(h.Status.RiskAccepted.Until) {
				report.Status.RiskAccepted = h.Status.RiskAccepted
			}
			h.Status = report.Status
			return true, nil
		})
		if errors.Is(err, store.ErrNotFound) {
			err = c.createHost(ctx, kind, name, report.Status)
		}
		if err != nil {
			return nil, err
		}
		return c.answerStatus(name, report.Status.RiskAccepted)
	})
}

// readyOf takes the one condition that an agent may claim, cut to a sane size.
func readyOf(status bocage.HostStatus, now time.Time) bocage.Condition {
	const most = 1024
	ready := bocage.Condition{Status: "Unknown", Reason: "Unreported", Message: "the agent says nothing of itself"}
	for _, condition := range status.Conditions {
		if condition.Type == bocage.ConditionReady && (condition.Status == "True" || condition.Status == "False") {
			ready = condition
		}
	}
	ready.Type, ready.LastTransitionTime = bocage.ConditionReady, now.UTC()
	ready.Reason = ready.Reason[:min(len(ready.Reason), 64)]
	ready.Message = ready.Message[:min(len(ready.Message), most)]
	return ready
}

// cutWords bounds what an agent says of profiles.
func cutWords(refused map[string]string) map[string]string {
	const profiles, most = 64, 1024
	out := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(refused)) {
		if len(out) < profiles && len(name) <= 253 {
			out[name] = refused[name][:min(len(refused[name]), most)]
		}
	}
	return out
}

// noticeSilence marks hosts whose agent has not reported for a while. What they
// enforce they go on enforcing. Nobody reports while controllers are away, so one that
// has been away itself gives agents the time to come back.
func (c *controllerProcess) noticeSilence(ctx context.Context) error {
	const silence, comeBack = 3 * statusEvery, 6 * statusEvery
	kind, _ := bocage.KindNamed("Host")
	there := time.Now().Round(0) // since when this controller was not away, sleep counted
	looked := there
	return every(ctx, statusEvery, func() error {
		objects, _, err := store.Objects(ctx, c.store, kind)
		now := time.Now().Round(0)
		if slept := now.Sub(looked); err != nil || slept > 2*statusEvery || slept < 0 { // or the clock was set
			there = now
		}
		if looked = now; err != nil {
			c.logger.Warn("look for silent hosts", "error", err)
			return nil
		}
		if now.Sub(there) < comeBack {
			return nil
		}
		for _, object := range objects {
			err := store.UpdateObject(ctx, c.store, kind, "", object.Meta().Name, func(h *bocage.Host) (bool, error) {
				silent := c.clock.Now().Sub(h.Status.LastSeen)
				unknown := slices.ContainsFunc(h.Status.Conditions, func(c bocage.Condition) bool {
					return c.Type == bocage.ConditionReady && c.Status == "Unknown"
				})
				if silent < silence || unknown {
					return false, nil
				}
				h.Status.Conditions = bocage.SetCondition(h.Status.Conditions, bocage.Condition{
					Type: bocage.ConditionReady, Status: "Unknown", Reason: "Silent", LastTransitionTime: c.clock.Now().UTC(),
					Message: silentSince(h.Status.LastSeen),
				})
				return true, nil
			})
			if err != nil && !errors.Is(err, store.ErrNotFound) && ctx.Err() == nil {
				c.logger.Warn("mark a silent host", "host", object.Meta().Name, "error", err)
			}
		}
		return nil
	})
}

// silentSince says of a host what its silence means.
func silentSince(seen time.Time) string {
	if seen.IsZero() { // it was declared
		return "no agent has joined by this name yet: bocage agent token makes a token for one"
	}
	return "its agent has not reported since " + seen.Format(time.RFC3339) + "; what it enforced stays in force"
}

func (c *controllerProcess) createHost(ctx context.Context, kind bocage.Kind, name string, status bocage.HostStatus) error {
	host := &bocage.Host{ObjectMeta: store.NewMeta(name, c.clock.Now()), Status: status}
	_, err := store.PutObject(ctx, c.store, kind, host, store.Absent)
	if errors.Is(err, store.ErrConflict) {
		return nil // another report was faster; the next one updates
	}
	return err
}

func (c *controllerProcess) newAPI(ctx context.Context) (*api.Server, error) {
	adminToken, err := c.makeAdminToken(ctx)
	if err != nil {
		return nil, err
	}
	var provider *api.OIDC
	if c.cfg.OIDC.Issuer != "" {
		provider = &c.cfg.OIDC
	}
	return api.New(api.Config{
		AdminToken: adminToken, AdminTokenUsed: func() {
			if err := c.dropAdminToken(); err != nil {
				c.logger.Warn("the one-time token", "error", err)
			}
		},
		Administrator: c.administrators.note,
		OIDC:          provider, TwoPerson: c.cfg.TwoPerson, Quotas: c.cfg.Quotas,
		AuditDir: c.cfg.controllerDir("audit"), Node: c.cfg.Host,
		Store: c.store, Listen: c.cfg.APIListen, Socket: c.cfg.Socket(), TrustDomain: c.cfg.TrustDomain,
		Ready: map[string]func(context.Context) error{
			"history": func(context.Context) error { return c.lake.Fault() },
			"clock":   func(context.Context) error { return c.clock.fault() },
		},
		Advice: map[string]func() string{"etcd": c.doubt, "policy": c.policy.Fault},
		Held:   c.policy.Held,
		Now:    c.clock.Now,
		SVID:   c.svid.Load, Bundle: c.authority.Bundle(), Product: c.cfg.Version, Registry: c.registry, Logger: c.logger,
		Functions: api.Functions{
			Explain:   c.policy.Explain,
			Plan:      c.policy.Plan,
			Flows:     c.flows.Flows,
			Hunt:      c.hunt,
			Suggest:   c.suggest,
			Test:      c.policy.Test,
			Blast:     c.policy.Blast,
			Matrix:    c.policy.Matrix,
			Rollout:   c.rollout,
			JoinToken: c.tokens.Create,
			Certificate: func(_ context.Context, path string, groups []string, csr []byte, ttl time.Duration) ([]byte, error) {
				return c.authority.Issue(path, csr, ttl, identity.IssueOptions{ClientOnly: true, Groups: groups})
			},
		},
	})
}

func (c *controllerProcess) hunt(ctx context.Context, sql string, limit int) (bocage.HuntResult, error) {
	return c.lake.Query(ctx, sql, limit)
}

// edges returns what was seen since a moment, the last seconds included.
func (c *controllerProcess) edges(ctx context.Context, since time.Time) ([]bocage.Edge, error) {
	if err := c.lake.Flush(ctx); err != nil {
		return nil, fmt.Errorf("bring the history up to date: %w", err)
	}
	return c.lake.Edges(ctx, since)
}

// usage tells how often each decision was used in a time.
func (c *controllerProcess) usage(ctx context.Context, since, until time.Time) ([]policy.DecisionUse, error) {
	if err := c.lake.Flush(ctx); err != nil {
		return nil, fmt.Errorf("bring the history up to date: %w", err)
	}
	uses, err := c.lake.Usage(ctx, since, until)
	if err != nil {
		return nil, err
	}
	out := make([]policy.DecisionUse, len(uses))
	for i, u := range uses {
		out[i] = policy.DecisionUse{Decision: u.Decision, Generation: u.Generation, Hits: u.Hits, First: u.First, Last: u.Last}
	}
	return out, nil
}

// suggest draws policy from what was seen since some time ago.
func (c *controllerProcess) suggest(ctx context.Context, since time.Duration, namespaces []string) (bocage.SuggestResult, error) {
	from := time.Time{}
	if since > 0 {
		from = time.Now().Add(-since)
	}
	edges, err := c.edges(ctx, from)
	if err != nil {
		return bocage.SuggestResult{}, err
	}
	return c.policy.Suggest(edges, namespaces)
}

// decider names the object behind a decision: the decoy that a refused source
// meets, else the first of the authors. Nobody stands behind default deny.
func (c *controllerProcess) decider(generation uint32, id bocage.DecisionID) string {
	decision, ok := c.policy.Decision(generation, id)
	if !ok || len(decision.By) == 0 {
		return ""
	}
	if decision.Verdict == bocage.VerdictDecoy {
		return decision.By[len(decision.By)-1].String()
	}
	if decision.Code == bocage.ReasonDefaultDeny {
		return ""
	}
	return decision.By[0].String()
}

func (c *controllerProcess) close() {
	if c.lake != nil {
		if err := c.lake.Close(); err != nil {
			c.logger.Warn("close the history", "error", err)
		}
	}
	if c.transport != nil {
		if err := c.transport.Close(); err != nil {
			c.logger.Warn("close the transport", "error", err)
		}
	}
	if c.store != nil {
		if err := c.store.Close(); err != nil {
			c.logger.Warn("close the store", "error", err)
		}
	}
}
