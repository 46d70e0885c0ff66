package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"bocage.dev/bocage/dataplane"
	"bocage.dev/bocage/host"
)

// patient is an installation that is asked: what its process says, what lies in
// the kernel, what lies on disk. Each is got once.
type patient struct {
	cfg    Config
	pid    int   // of the process that holds the run folder; 0: none
	unseen error // why nobody can tell whether there is one
	report AgentReport
	silent error // why there is no report
	kernel dataplane.Examination
	blind  error // why there is no examination
	links  []host.Link
	state  string // the state folder
}

// Doctor returns the checks of this machine and of the installation on it, which
// may be none. Asking them changes nothing.
func Doctor(ctx context.Context, cfg Config) ([]host.Check, error) {
	cfg, err := cfg.found().Complete()
	if err != nil {
		return nil, err
	}
	p := &patient{cfg: cfg, state: cfg.StateDir}
	pids, unseen := holders(cfg.RunDir)
	if p.unseen = unseen; len(pids) > 0 {
		p.pid = pids[len(pids)-1] // the agent's, if it has one of its own
	}
	attempt, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	p.report, p.silent = AskAgent(attempt, cfg)
	p.kernel, p.blind = dataplane.Examine(dataplane.Config{Host: cfg.Host, PinDir: cfg.PinDir()})
	if p.links, err = host.Links(""); err != nil {
		return nil, err
	}
	checks := host.Machine{}.Checks()
	checks = append(checks, p.processChecks()...)
	checks = append(checks, p.kernelChecks()...)
	checks = append(checks, p.pathChecks()...)
	return append(checks, p.diskChecks()...), nil
}

// needsAgent leaves a check out where no agent has ever been, and says what is
// missing where one is and does not answer.
func (p *patient) needsAgent(ask func() host.Answer) func(context.Context) host.Answer {
	return func(context.Context) host.Answer {
		switch {
		case p.silent == nil:
			return ask()
		case errors.Is(p.blind, fs.ErrNotExist) && p.pid == 0:
			return host.Apart("no agent is installed here")
		case errors.Is(p.silent, fs.ErrPermission):
			return withoutRights(p.silent)
		case p.pid == 0 && p.unseen != nil:
			return withoutRights(p.unseen)
		}
		return host.Unclear(errors.New("no agent answers")).CuredBy("systemctl start bocage-agent")
	}
}

// needsKernel likewise, for what lies in the kernel.
func (p *patient) needsKernel(ask func() host.Answer) func(context.Context) host.Answer {
	return func(context.Context) host.Answer {
		switch {
		case p.blind == nil:
			return ask()
		case errors.Is(p.blind, fs.ErrNotExist) && p.silent != nil:
			return host.Apart("nothing is pinned: no agent is installed here")
		case errors.Is(p.blind, fs.ErrNotExist):
			return host.Unclear(fmt.Errorf("an agent runs, and %s is not there: it is in another mount namespace, or gone", p.cfg.PinDir()))
		}
		return withoutRights(p.blind)
	}
}

// withoutRights is the answer to what could not be seen: for want of rights, as a rule.
func withoutRights(err error) host.Answer {
	answer := host.Unclear(err)
	if errors.Is(err, fs.ErrPermission) {
		answer = answer.CuredBy("run bocage doctor as root: user %d may not see it", os.Geteuid())
	}
	return answer
}

// processChecks ask what runs.
func (p *patient) processChecks() []host.Check {
	agent := p.needsAgent
	return []host.Check{
		{Code: "agent.running", Severity: host.Degraded, Cure: "systemctl start bocage-agent (or bocage up): what was enforced stays in force meanwhile", Ask: func(context.Context) host.Answer { return p.askRunning() }},
		{Code: "agent.answers", Severity: host.Degraded, Cure: "systemctl restart bocage-agent: no packet is lost by it", Ask: func(context.Context) host.Answer { return p.askAnswers() }},
		{Code: "agent.faults", Severity: host.Degraded, Cure: "see journalctl -u bocage-agent", Ask: agent(p.askFaults)},
		{Code: "agent.generation", Severity: host.Degraded, Cure: "bocage apply -f POLICY; before a ruleset nothing is refused", Ask: agent(p.askGeneration)},
		{Code: "agent.applied", Severity: host.Degraded, Cure: "bocage get host -o yaml tells why; the generation before stays in force", Ask: agent(p.askApplied)},
		{Code: "agent.confirmed", Severity: host.Degraded, Cure: "bocage policy confirm, or bocage policy rollback", Ask: agent(p.askConfirmed)},
		{Code: "agent.controllers", Severity: host.Degraded, Cure: "open the way to them (bocage failsafe shows what is let through), or start it again with others: --controllers", Ask: func(ctx context.Context) host.Answer { return p.askControllers(ctx) }},
		{Code: "agent.connected", Severity: host.Degraded, Cure: "see journalctl -u bocage-agent: the last ruleset stays in force, events wait on disk", Ask: agent(p.askConnected)},
		{Code: "agent.certificate", Severity: host.Degraded, Cure: "bocage agent token HOST on a controller, and start the agent once with --join", Ask: func(context.Context) host.Answer { return p.askCertificate() }},
		{Code: "agent.version", Severity: host.Advice, Cure: "systemctl restart bocage-agent: no packet is lost by it", Ask: agent(p.askVersion)},
		{Code: "controller.version", Severity: host.Advice, Cure: "upgrade controllers first, then agents", Ask: agent(p.askControllerVersion)},
		{Code: "controller.ready", Severity: host.Degraded, Cure: "see journalctl -u bocage-controller", Ask: func(ctx context.Context) host.Answer { return p.askReady(ctx) }},
		{Code: "controller.etcd", Severity: host.Advice, Cure: "upgrade every member to etcd 3.4.31, 3.5.13, 3.6 or later, or let controllers reach every member's client URL: until then a small key is written where a newest list has to wait for etcd", Ask: func(ctx context.Context) host.Answer {
			return p.askAdvice(ctx, "etcd", "it answers how far watches are")
		}},
		{Code: "policy.holds", Severity: host.Degraded, Cure: "see bocage policy history, and docs/policy.md, \"If a proof fails\"", Ask: func(ctx context.Context) host.Answer {
			return p.askAdvice(ctx, "policy", "what is declared is in force, or on its way")
		}},
		{Code: "agent.capabilities", Severity: host.Advice, Cure: "run it by packaging/bocage-agent.service: as user bocage with two capabilities", Ask: agent(p.askCapabilities)},
		{Code: "agent.unit", Severity: host.Advice, Cure: "bocage install, then systemctl enable --now bocage-agent: after a reboot nothing is enforced until it runs", Ask: agent(p.askUnit)},
		{Code: "discovery.runtime", Severity: host.Degraded, Cure: "start the runtime, or name its socket with --runtime-socket; what runs keeps its identity meanwhile", Ask: agent(p.askRuntime)},
		{Code: "discovery.governed", Severity: host.Degraded, Cure: "connect it to a bridge network: nothing can be enforced on what has no interface of its own on this host", Ask: agent(p.askGoverned)},
		{Code: "inspection.up", Severity: host.Degraded, Cure: "see suricata.log in the run folder; flows with a duty to inspect follow their profile's failMode", Ask: agent(func() host.Answer { return up("the inspection engine is", p.report.Inspection) })},
		{Code: "decoys.up", Severity: host.Degraded, Cure: "see journalctl -u bocage-agent; what would meet a decoy is dropped", Ask: agent(func() host.Answer { return up("the decoys are", p.report.Decoys) })},
	}
}

// moment is a time as every screen writes it.
func moment(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func up(what string, f FunctionReport) host.Answer {
	switch {
	case !f.Wanted:
		return host.Apart("%s left out of this agent", what)
	case !f.Up:
		return host.Ill("%s not up", what)
	}
	return host.Well("%s up", what)
}

func (p *patient) askRuntime() host.Answer {
	d := p.report.Discovery
	switch {
	case len(d.Failing) > 0:
		return host.Ill("%s", brief(d.Failing))
	case len(d.Sources) == 0:
		return host.Apart("no container runtime is read: workloads are those that are declared")
	case len(d.Known) == 0:
		return host.Apart("none of %s is there", strings.Join(d.Sources, " and "))
	}
	return host.Well("%d workloads at %s", d.Workloads, strings.Join(d.Known, " and "))
}

func (p *patient) askGoverned() host.Answer {
	if ungoverned := p.report.Discovery.Ungoverned; len(ungoverned) > 0 {
		return host.Ill("%s", brief(ungoverned))
	}
	return host.Well("nothing is known that runs without an enforcement point in front of it")
}

func (p *patient) askRunning() host.Answer {
	switch {
	case p.pid != 0:
		return host.Well("process %d", p.pid)
	case p.unseen != nil:
		return withoutRights(p.unseen)
	case errors.Is(p.blind, fs.ErrNotExist):
		return host.Apart("no agent is installed here")
	}
	return host.Ill("no process holds %s; what was enforced stays in force", p.cfg.RunDir)
}

func (p *patient) askAnswers() host.Answer {
	switch {
	case p.silent == nil:
		return host.Well("host %s, since %s", p.report.Host, moment(p.report.Started))
	case errors.Is(p.silent, fs.ErrPermission):
		return withoutRights(p.silent)
	case p.pid == 0 && p.unseen == nil:
		return host.Apart("no agent runs")
	case errors.Is(p.silent, fs.ErrNotExist):
		return host.Apart("process %d is a controller only", p.pid)
	}
	return host.Ill("process %d: %v", p.pid, p.silent)
}

func (p *patient) askFaults() host.Answer {
	if len(p.report.Faults) > 0 {
		return host.Ill("%s", strings.Join(p.report.Faults, "; "))
	}
	return host.Well("the agent finds nothing wrong")
}

func (p *patient) askGeneration() host.Answer {
	if p.report.Generation == 0 {
		return host.Ill("no ruleset is in force: everything passes")
	}
	return host.Well("generation %d since %s", p.report.Generation, moment(p.report.Since))
}

func (p *patient) askApplied() host.Answer {
	if p.report.NotApplied != 0 {
		return host.Ill("generation %d could not be put in force", p.report.NotApplied)
	}
	return host.Well("nothing waits to be put in force")
}

func (p *patient) askConfirmed() host.Answer {
	switch {
	case p.report.RevertedFrom != 0:
		return host.Ill("nobody confirmed generation %d, so this host went back", p.report.RevertedFrom)
	case time.Now().Before(p.report.ConfirmBy):
		return host.Ill("generation %d goes back at %s unless it is confirmed", p.report.Generation, moment(p.report.ConfirmBy))
	}
	return host.Well("nothing waits to be confirmed")
}

// askControllers knocks at each.
func (p *patient) askControllers(ctx context.Context) host.Answer {
	addresses := p.report.Controllers
	if len(addresses) == 0 {
		return host.Apart("no agent says which controllers it has")
	}
	if len(addresses) == 1 && p.report.Connected {
		return host.Well("%s, which answers", addresses[0])
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	var away []string
	for _, address := range addresses {
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, "tcp", address)
		if err != nil {
			away = append(away, err.Error())
			continue
		}
		conn.Close()
	}
	if len(away) > 0 {
		return host.Ill("%d of %d: %s", len(away), len(addresses), strings.Join(away, "; "))
	}
	return host.Well("%s", strings.Join(addresses, ", "))
}

func (p *patient) askConnected() host.Answer {
	if !p.report.Connected {
		last := "ever"
		if !p.report.Answered.IsZero() {
			last = "since " + moment(p.report.Answered)
		}
		return host.Ill("no controller has answered %s", last)
	}
	return host.Well("a controller answered at %s", moment(p.report.Answered))
}

// certificateWarning is when an agent that renews at half of a certificate's life
// has failed to for long.
const certificateWarning = agentLife / 4

func (p *patient) askCertificate() host.Answer {
	expires := p.report.CertificateExpires
	if expires.IsZero() {
		credentials, err := loadCredentials(p.cfg.agentDir("identity"), p.cfg.TrustDomain)
		if errors.Is(err, fs.ErrNotExist) {
			return host.Apart("no agent has joined from here")
		}
		if err != nil {
			return host.Unclear(err)
		}
		expires = credentials.svid.Expires()
	}
	switch left := time.Until(expires); {
	case left <= 0:
		return host.Ill("it expired on %s", moment(expires))
	case left < certificateWarning:
		return host.Ill("it expires on %s and was not renewed", moment(expires)).CuredBy("see that a controller answers: agent.connected")
	}
	return host.Well("good until %s", moment(expires))
}

func (p *patient) askVersion() host.Answer {
	if p.report.Version != p.cfg.Version {
		return host.Ill("the agent that runs is %q, this program is %q", p.report.Version, p.cfg.Version)
	}
	return host.Well("%q, as this program", p.report.Version)
}

func (p *patient) askControllerVersion() host.Answer {
	switch p.report.ControllerVersion {
	case "":
		return host.Apart("no controller has said its version")
	case p.report.Version:
		return host.Well("%q, as the agent", p.report.Version)
	}
	return host.Ill("the controller is %q, the agent %q", p.report.ControllerVersion, p.report.Version)
}

// askReady asks the controller on this host, if there is one.
func (p *patient) askReady(ctx context.Context) host.Answer {
	if _, err := os.Stat(p.cfg.Socket()); errors.Is(err, fs.ErrNotExist) {
		return host.Apart("no controller runs here")
	}
	response, err := p.askController(ctx, "/readyz")
	if err != nil {
		return host.Ill("%v", err).CuredBy("systemctl start bocage-controller")
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return host.Ill("%s", said(response.Body))
	}
	return host.Well("its parts are ready")
}

// askAdvice asks it what it remarks on something, which is no reason to be sent away; well
// is what is so if it remarks nothing.
func (p *patient) askAdvice(ctx context.Context, name, well string) host.Answer {
	if _, err := os.Stat(p.cfg.Socket()); errors.Is(err, fs.ErrNotExist) {
		return host.Apart("no controller runs here")
	}
	response, err := p.askController(ctx, "/readyz?verbose")
	if err != nil {
		return host.Unclear(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, 64<<10))
	if err != nil {
		return host.Unclear(err)
	}
	for line := range strings.Lines(string(text)) {
		if doubt, found := strings.CutPrefix(line, "[!]"+name+": "); found {
			return host.Ill("%s", strings.TrimSpace(doubt))
		}
	}
	return host.Well("%s", well)
}

func (p *patient) askController(ctx context.Context, path string) (*http.Response, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", p.cfg.Socket())
	}}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://controller"+path, nil)
	if err != nil {
		return nil, err
	}
	return client.Do(request)
}

// askCapabilities: more rights than enforcement needs are rights to lose.
func (p *patient) askCapabilities() host.Answer {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.report.PID))
	if err != nil {
		return host.Unclear(err)
	}
	effective, err := host.EffectiveCapabilities(string(status))
	if err != nil {
		return host.Unclear(err)
	}
	const needed = 1<<unix.CAP_BPF | 1<<unix.CAP_NET_ADMIN
	switch more := effective &^ needed; {
	case p.report.User == 0:
		return host.Ill("process %d runs as root with capabilities %#x", p.report.PID, effective)
	case more != 0:
		return host.Ill("user %d has capabilities beyond CAP_BPF and CAP_NET_ADMIN: %#x", p.report.User, more)
	}
	return host.Well("user %d with no capability that it does not need", p.report.User)
}

func (p *patient) askUnit() host.Answer {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return host.Apart("this machine is not run by systemd")
	}
	group, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.report.PID))
	if err != nil {
		return host.Unclear(err)
	}
	for _, unit := range []string{"bocage-agent.service", "bocage.service"} {
		if strings.Contains(string(group), unit) {
			return host.Well("run by %s", unit)
		}
	}
	return host.Ill("process %d is not run by a unit: nobody starts it after a crash or a reboot", p.report.PID)
}

// linkOf finds a link of the host by its index.
func (p *patient) linkOf(index uint32) (host.Link, bool) {
	i := slices.IndexFunc(p.links, func(l host.Link) bool { return l.Index == index })
	if i < 0 {
		return host.Link{}, false
	}
	return p.links[i], true
}
