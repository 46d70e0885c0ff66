package bocage

import (
	"fmt"
	"net/netip"
	"strings"
)

// Application is its owner's contract: what its workloads offer to whom, and
// what they need. A flow is allowed when both halves agree.
type Application struct {
	TypeMeta   `json:",inline"`
	ObjectMeta `json:"metadata"`
	Spec       ApplicationSpec   `json:"spec"`
	Status     ApplicationStatus `json:"status,omitzero"`
}

// ApplicationSpec is what the owner declares.
type ApplicationSpec struct {
	// Workload selects the application's workloads within its namespace.
	Workload Selector `json:"workload"`
	// Provides lists the interfaces that the workloads offer.
	Provides []Provide `json:"provides,omitempty"`
	// Consumes lists what the workloads need from others.
	Consumes []Consume `json:"consumes,omitempty"`
}

// Provide is one offered interface.
type Provide struct {
	Name string `json:"name"`
	// Port is the first destination port; none for ICMP.
	Port uint16 `json:"port,omitempty"`
	// EndPort makes a range with Port.
	EndPort uint16 `json:"endPort,omitempty"`
	// Protocol is TCP (the default), UDP, SCTP, ICMP or ICMPv6.
	Protocol string `json:"protocol,omitempty"`
	// AppProtocol is the application protocol, such as postgresql or tls. Flows owe the
	// duty to speak it (see Duties.Verify).
	AppProtocol string `json:"appProtocol,omitempty"`
	// Data names the classes of the data that pass here, such as pci.
	Data []string `json:"data,omitempty"`
	// To selects who may consume it: workloads of the same namespace unless
	// ToNamespaces says otherwise.
	To Selector `json:"to,omitzero"`
	// ToNamespaces lists consumers' namespaces; "*" is all of them.
	ToNamespaces []string `json:"toNamespaces,omitempty"`
	// ToExternal lists addresses outside the inventory that may consume it. They need no
	// second half of the contract.
	ToExternal []netip.Prefix `json:"toExternal,omitempty"`
}

// Consume is one need: either a service or an external address.
type Consume struct {
	// Service is "application" in the same namespace or "namespace/application".
	Service string `json:"service,omitempty"`
	// Interface is the name of one of the service's provides; empty means all.
	Interface string `json:"interface,omitempty"`
	// External is outside the inventory: a prefix, or a DNS name such as
	// api.example.com or *.example.com. A name stands for the addresses in the DNS
	// answers that the workload itself got, from servers that policy lets it ask, as
	// long as these answers are valid.
	External External `json:"external,omitzero"`
	// Port, EndPort and Protocol belong to External; a service has its own.
	Port     uint16 `json:"port,omitempty"`
	EndPort  uint16 `json:"endPort,omitempty"`
	Protocol string `json:"protocol,omitempty"`
}

// ApplicationStatus is what the system says of it.
type ApplicationStatus struct {
	Conditions []Condition `json:"conditions,omitempty"`
	// Missing lists halves of contracts that the other side has not declared,
	// each with the change that would complete it.
	Missing []string `json:"missing,omitempty"`
	// Usage says how much each contract is used.
	Usage []Usage `json:"usage,omitempty"`
}

// Validate implements Resource.
func (a *Application) Validate() Faults {
	faults := validateMeta(&a.ObjectMeta, true)
	faults = append(faults, a.Spec.Workload.Validate().Under("spec.workload")...)
	names := map[string]int{}
	for i, p := range a.Spec.Provides {
		at := fmt.Sprintf("spec.provides[%d]", i)
		if !isDNSLabel(p.Name) {
			faults.Add(at+".name", "%q is not a lower-case DNS label", p.Name)
		} else if first, twice := names[p.Name]; twice {
			faults.Add(at+".name", "%q is the name of provides[%d] too", p.Name, first)
		} else {
			names[p.Name] = i
		}
		faults = append(faults, validatePorts(p.Port, p.EndPort, p.Protocol).Under(at)...)
		if p.AppProtocol != "" && !isAppProtocol(p.AppProtocol) {
			faults.Add(at+".appProtocol", "%q is not one of %s", p.AppProtocol, strings.Join(AppProtocolNames(), ", "))
		}
		faults = append(faults, p.To.Validate().Under(at+".to")...)
		faults = append(faults, Side{Data: p.Data}.Validate().Under(at)...)
		for j, ns := range p.ToNamespaces {
			if ns != "*" && !isDNSLabel(ns) {
				faults.Add(fmt.Sprintf("%s.toNamespaces[%d]", at, j), "%q is neither a namespace nor \"*\"", ns)
			}
		}
		faults = append(faults, validatePrefixes(p.ToExternal).Under(at+".toExternal")...)
	}
	for i, c := range a.Spec.Consumes {
		faults = append(faults, c.validate().Under(fmt.Sprintf("spec.consumes[%d]", i))...)
	}
	return faults
}

func (c Consume) validate() Faults {
	var faults Faults
	external := c.External != External{}
	switch {
	case c.Service == "" && !external:
		faults.Add("", "needs a service or an external prefix or name")
	case c.Service != "" && external:
		faults.Add("", "has both a service and an external end: use two entries")
	case external:
		faults = append(faults, c.External.validate().Under("external")...)
		faults = append(faults, validatePorts(c.Port, c.EndPort, c.Protocol)...)
	default:
		if !IsServiceName(c.Service) {
			faults.Add("service", "%q is neither an application's name nor namespace/name", c.Service)
		}
		if c.Port != 0 || c.EndPort != 0 || c.Protocol != "" {
			faults.Add("port", "ports and protocol come from the service: name an interface of it instead")
		}
	}
	if c.Interface != "" && (external || !isDNSLabel(c.Interface)) {
		faults.Add("interface", "%q must name one of the service's provides", c.Interface)
	}
	return faults
}

// Transport reads a declared protocol and ports: TCP where none is named, every
// port for protocols without ports.
func Transport(port, endPort uint16, protocol string) (Protocol, PortRange, error) {
	p := ProtocolTCP
	if protocol != "" {
		var err error
		if p, err = ParseProtocol(protocol); err != nil {
			return 0, PortRange{}, err
		}
	}
	if !p.HasPorts() {
		return p, AllPorts, nil
	}
	return p, PortRange{port, max(port, endPort)}, nil
}

func validatePorts(port, endPort uint16, protocol string) Faults {
	var faults Faults
	p, _, err := Transport(port, endPort, protocol)
	switch {
	case err != nil:
		faults.Add("protocol", "%v", err)
	case p == ProtocolAny:
		faults.Add("protocol", "name one protocol: TCP, UDP, SCTP, ICMP or ICMPv6")
	case p.HasPorts() && port == 0:
		faults.Add("port", "needs a port from 1 to 65535")
	case !p.HasPorts() && (port != 0 || endPort != 0):
		faults.Add("port", "%s has no ports", p)
	case endPort != 0 && endPort < port:
		faults.Add("endPort", "%d is below port %d", endPort, port)
	}
	return faults
}
