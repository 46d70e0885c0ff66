package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"bocage.dev/bocage"
	"bocage.dev/bocage/identity"
	"bocage.dev/bocage/stream"
)

// openBatch returns the function that verifies a signed batch: a good signature
// by an agent, and a batch that claims no other source than its signer. Only an
// agent whose certificate was good then could append it, so one that has expired
// since it was signed, within a certificate's life, is good enough: batches wait
// on an agent's disk, and are read again after a restart.
func openBatch(bundle *identity.Bundle) func(envelope []byte) (*bocage.Batch, error) {
	return func(envelope []byte) (*bocage.Batch, error) {
		now := bundle.Now() // agents' certificates are made by it
		payload, id, err := bundle.Open(envelope, bocage.SignedBatch, now)
		if err != nil {
			var then error
			if payload, id, then = bundle.Open(envelope, bocage.SignedBatch, now.Add(-agentLife)); then != nil {
				return nil, err
			}
		}
		var batch bocage.Batch
		if err := json.Unmarshal(payload, &batch); err != nil {
			return nil, fmt.Errorf("batch of %s: %w", id, err)
		}
		if batch.Source != id {
			return nil, fmt.Errorf("batch signed by %s claims to come from %s", id, batch.Source)
		}
		return &batch, nil
	}
}

// flowReader answers questions for reported flows out of the log of events.
type flowReader struct {
	log   stream.Log
	open  func(envelope []byte) (*bocage.Batch, error)
	names *names
	// decider names the object that stands behind a decision of a generation.
	decider func(generation uint32, id bocage.DecisionID) string
}

// errEnough ends a read that has its answer.
var errEnough = errors.New("enough")

// Flows calls each for every record that matches, oldest first, until the log's
// present end, or for ever if the query follows.
func (r *flowReader) Flows(ctx context.Context, query bocage.FlowsQuery, each func(bocage.FlowRecord) error) error {
	match, err := flowMatcher(query)
	if err != nil {
		return err
	}
	_, last, err := r.log.Bounds(ctx)
	if err != nil {
		return err
	}
	from := uint64(0)
	if query.Follow && query.Since.IsZero() {
		from = last + 1
	}
	if !query.Follow && last == 0 {
		return nil
	}
	given := 0
	err = r.log.Read(ctx, from, func(message stream.Message) error {
		batch, err := r.open(message.Data)
		if err == nil {
			err = r.records(batch, func(record bocage.FlowRecord) error {
				if !match(record) {
					return nil
				}
				if err := each(record); err != nil {
					return err
				}
				if given++; given == query.Limit {
					return errEnough
				}
				return nil
			})
		} else {
			err = nil // recognition reports forged and damaged batches
		}
		if err == nil && !query.Follow && message.Sequence >= last {
			return errEnough
		}
		return err
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

func (r *flowReader) records(batch *bocage.Batch, each func(bocage.FlowRecord) error) error {
	events, err := batch.FlowEvents()
	if err != nil {
		return nil
	}
	_, host, _ := strings.Cut(batch.Source, "/agent/")
	for _, event := range events {
		if err := each(r.record(event, host)); err != nil {
			return err
		}
	}
	for i := range batch.Greetings {
		record := r.record(batch.Greetings[i].Flow, host)
		record.Greeting = &batch.Greetings[i].Greeted
		if err := each(record); err != nil {
			return err
		}
	}
	return nil
}

// record adds names to an event. The end behind the interface is a workload
// whose address the inventory knows; the other end's is in the event.
func (r *flowReader) record(event bocage.FlowEvent, host string) bocage.FlowRecord {
	record := bocage.FlowRecord{FlowEvent: event, Host: host,
		SourceWorkload: r.names.Name(event.Source), DestinationWorkload: r.names.Name(event.Destination)}
	near, far := &record.SourceAddress, &record.DestinationAddress
	nearID := event.Source
	if event.Direction == bocage.DirectionTo {
		near, far, nearID = far, near, event.Destination
	}
	if event.Remote.IsValid() && !event.Remote.IsUnspecified() {
		*far = event.Remote.String()
	}
	if w := r.names.Workload(nearID); w != nil {
		for _, address := range w.Spec.Addresses {
			if *near == "" || address.Is4() == event.Remote.Is4() {
				*near = address.String()
			}
			if address.Is4() == event.Remote.Is4() {
				break
			}
		}
	}
	if r.decider != nil && event.Decision != 0 {
		record.Decider = r.decider(event.Generation, event.Decision)
	}
	return record
}

func flowMatcher(query bocage.FlowsQuery) (func(bocage.FlowRecord) bool, error) {
	from, err := endMatcher(query.From)
	if err != nil {
		return nil, fmt.Errorf("from: %w", err)
	}
	to, err := endMatcher(query.To)
	if err != nil {
		return nil, fmt.Errorf("to: %w", err)
	}
	return func(r bocage.FlowRecord) bool {
		return (query.Verdict == bocage.VerdictNone || query.Verdict == r.Verdict) &&
			(!query.WouldRefuse || r.Verdict.Allowed() && !r.Would.Allowed()) &&
			(query.Port == 0 || query.Port == r.DestinationPort) &&
			(query.Protocol == bocage.ProtocolAny || query.Protocol == r.Protocol) &&
			(query.Since.IsZero() || !r.Time.Before(query.Since)) &&
			from(r.SourceWorkload, r.SourceAddress) && to(r.DestinationWorkload, r.DestinationAddress)
	}, nil
}

// endMatcher reads "namespace/name", "namespace/", an address or a prefix.
func endMatcher(text string) (func(workload, address string) bool, error) {
	if text == "" {
		return func(string, string) bool { return true }, nil
	}
	prefix, err := netip.ParsePrefix(text)
	if address, bad := netip.ParseAddr(text); bad == nil {
		prefix, err = netip.PrefixFrom(address, address.BitLen()), nil
	}
	if err == nil {
		return func(_, address string) bool {
			parsed, err := netip.ParseAddr(address)
			return err == nil && prefix.Contains(parsed)
		}, nil
	}
	switch {
	case strings.HasSuffix(text, "/"):
		return func(workload, _ string) bool { return strings.HasPrefix(workload, text) }, nil
	case bocage.IsWorkloadName(text):
		return func(workload, _ string) bool { return workload == text }, nil
	default:
		return nil, fmt.Errorf("%q is neither namespace/name, namespace/, an address nor a prefix", text)
	}
}
