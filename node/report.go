package node

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"bocage.dev/bocage"
)

// AgentReport is what an agent tells of itself on its own socket, to `bocage
// doctor` for one.
type AgentReport struct {
	Version string    `json:"version"`
	Host    string    `json:"host"`
	PID     int       `json:"pid"`
	User    int       `json:"user"`
	Started time.Time `json:"started"`

	// Generation is in force since Since; Newest is the newest that the agent took.
	Generation uint64    `json:"generation"`
	Since      time.Time `json:"since,omitzero"`
	NotApplied uint64    `json:"notApplied,omitempty"`
	// ConfirmBy is when the agent goes back; zero: never.
	ConfirmBy    time.Time `json:"confirmBy,omitzero"`
	RevertedFrom uint64    `json:"revertedFrom,omitempty"`

	Controllers []string `json:"controllers"`
	// Connected says that the last report was answered, at Answered, by a
	// controller of ControllerVersion.
	Connected         bool      `json:"connected"`
	Answered          time.Time `json:"answered,omitzero"`
	ControllerVersion string    `json:"controllerVersion,omitempty"`
	// CertificateExpires is the end of the agent's own.
	CertificateExpires time.Time `json:"certificateExpires,omitzero"`

	Ports   []PortReport `json:"ports"`
	Missing []PortReport `json:"missing,omitempty"`
	// Hidden are uplinks that are left alone, Uplinks those that were named.
	Hidden  []string `json:"hidden,omitempty"`
	Uplinks []string `json:"uplinks,omitempty"`
	Faults  []string `json:"faults,omitempty"`

	Discovery DiscoveryReport `json:"discovery"`

	Inspection FunctionReport `json:"inspection"`
	Decoys     FunctionReport `json:"decoys"`

	Events EventsReport `json:"events"`

	Sessions []bocage.AdministratorSession `json:"sessions,omitempty"`
	Failsafe []bocage.FailsafeEntry        `json:"failsafe,omitempty"`
}

// PortReport is one enforcement point.
type PortReport struct {
	Interface string   `json:"interface"`
	Ifindex   uint32   `json:"ifindex,omitempty"`
	Workload  string   `json:"workload,omitempty"`
	Addresses []string `json:"addresses,omitempty"`
}

// DiscoveryReport is what the agent sees of container runtimes.
type DiscoveryReport struct {
	Sources    []string `json:"sources"`
	Known      []string `json:"known"`
	Workloads  int      `json:"workloads"`
	Failing    []string `json:"failing,omitempty"`
	Ungoverned []string `json:"ungoverned,omitempty"`
}

// FunctionReport is a function of the agent that enforcement does not depend on.
type FunctionReport struct {
	Wanted bool `json:"wanted"`
	Up     bool `json:"up"`
	// Links are the indexes of its ends on the host.
	Links []uint32 `json:"links,omitempty"`
}

// EventsReport accounts for event records and the batches that wait.
type EventsReport struct {
	Offered uint64 `json:"offered"`
	Lost    uint64 `json:"lost"`
	Waiting int    `json:"waitingBatches"`
}

// report gathers what the agent knows of itself.
func (a *agentProcess) report() AgentReport {
	loop := a.loop.Status()
	r := AgentReport{
		Version: a.cfg.Version, Host: a.cfg.Host, PID: a.process.pid, User: a.process.user, Started: a.process.started,
		Generation: loop.Generation, NotApplied: loop.NotApplied, RevertedFrom: a.reverted.Load(),
		Controllers: a.cfg.Controllers, Uplinks: a.cfg.Uplinks, Faults: loop.Faults,
	}
	seen := a.discoverer.Sightings()
	r.Discovery = DiscoveryReport{Sources: seen.Sources, Known: seen.Known, Workloads: len(seen.Sightings), Failing: seen.Failing, Ungoverned: seen.Ungoverned}
	if since := a.since.Load(); since != nil {
		r.Since = *since
	}
	if ruleset := a.ruleset.Load(); ruleset != nil {
		r.ConfirmBy = ruleset.ConfirmBy
	}
	if text := a.faults.String(); text != "" {
		r.Faults = append(r.Faults, text)
	}
	if answered := a.answered.Load(); answered != nil {
		r.Answered, r.Connected = *answered, time.Since(*answered) < 3*statusEvery
	}
	if answer := a.answer.Load(); answer != nil {
		r.ControllerVersion = answer.Version
	}
	if svid := a.svid.Load(); svid != nil {
		r.CertificateExpires = svid.SVID().Expires()
	}
	for _, at := range loop.Attached {
		r.Ports = append(r.Ports, portReport(at.Ifindex, at.Port))
	}
	for _, port := range loop.Missing {
		r.Missing = append(r.Missing, portReport(0, port))
	}
	if hidden := a.hidden.Load(); hidden != nil {
		r.Hidden = *hidden
	}
	r.Inspection.Wanted, r.Decoys.Wanted = !a.cfg.NoInspection, !a.cfg.NoDeception
	if engine := a.inspection.Load(); engine != nil {
		outside, inside := engine.Ports()
		r.Inspection.Links, r.Inspection.Up = []uint32{outside, inside}, !a.faults.has("inspection")
	}
	if decoys := a.decoys.Load(); decoys != nil {
		ifindex, _ := decoys.Port()
		r.Decoys.Links, r.Decoys.Up = []uint32{ifindex}, !a.faults.has("decoys")
	}
	r.Events.Offered, r.Events.Lost = a.events.Counts()
	r.Events.Waiting = a.events.waiting()
	sessions, err := a.sessionsNow()
	if err != nil {
		r.Faults = append(r.Faults, err.Error())
	}
	r.Sessions = sessions
	r.Failsafe = a.failsafeNow()
	return r
}

func portReport(ifindex uint32, port bocage.Port) PortReport {
	r := PortReport{Interface: port.Interface, Ifindex: ifindex, Workload: port.Workload}
	for _, address := range port.Addresses {
		r.Addresses = append(r.Addresses, address.String())
	}
	return r
}

func (a *agentProcess) serveReport(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(a.report()) // whoever asked has gone
}

// AgentSocket is where an agent answers whoever runs as its user, or as root.
func (c Config) AgentSocket() string { return filepath.Join(c.RunDir, "agent.sock") }

// AskAgent asks the agent of this host for its report.
func AskAgent(ctx context.Context, cfg Config) (AgentReport, error) {
	var report AgentReport
	err := askAgent(ctx, cfg, http.MethodGet, "/report", nil, &report)
	return report, err
}

// askAgent makes one request to the agent's socket.
func askAgent(ctx context.Context, cfg Config, method, path string, body any, into any) error {
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", cfg.AgentSocket())
	}, DisableKeepAlives: true}}
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("ask the agent: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("ask the agent: %s", said(response.Body))
	}
	if err := json.NewDecoder(response.Body).Decode(into); err != nil {
		return fmt.Errorf("read the agent's answer: %w", err)
	}
	return nil
}

// said reads what somebody refuses with.
func said(body io.Reader) string {
	text, _ := io.ReadAll(io.LimitReader(body, 4096))
	return strings.TrimSpace(string(text))
}
