package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// FirewallTables lists the nftables tables of a namespace, sorted, as
// "FAMILY NAME". A kernel without nftables has none.
func FirewallTables(namespace string) ([]string, error) {
	var replies [][]byte
	err := In(namespace, func() (err error) {
		request := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETTABLE, unix.NLM_F_DUMP)
		request.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
		replies, err = request.Execute(unix.NETLINK_NETFILTER, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE)
		return err
	})
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list nftables tables of namespace %q: %w", namespace, err)
	}
	var tables []string
	for _, reply := range replies {
		if len(reply) < nl.SizeofNfgenmsg {
			continue
		}
		attributes, err := nl.ParseRouteAttr(reply[nl.SizeofNfgenmsg:])
		if err != nil {
			return nil, fmt.Errorf("list nftables tables of namespace %q: %w", namespace, err)
		}
		for _, a := range attributes {
			if a.Attr.Type == unix.NFTA_TABLE_NAME {
				tables = append(tables, firewallFamilies()[reply[0]]+" "+unix.ByteSliceToString(a.Value))
			}
		}
	}
	slices.Sort(tables)
	return tables, nil
}

func firewallFamilies() map[uint8]string {
	return map[uint8]string{unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6",
		unix.NFPROTO_ARP: "arp", unix.NFPROTO_BRIDGE: "bridge", unix.NFPROTO_NETDEV: "netdev"}
}

// FirewallChain is a base chain of nftables: one that packets enter by a hook.
type FirewallChain struct {
	Family, Table, Name string
	Hook                uint32 // NF_INET_PRE_ROUTING, ... of its family
	// Drops says that what no rule decides is dropped.
	Drops bool
}

func (c FirewallChain) String() string { return c.Family + " " + c.Table + " " + c.Name }

// FirewallChains lists the base chains of the calling thread's namespace. A kernel
// without nftables has none.
func FirewallChains() ([]FirewallChain, error) {
	request := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP)
	request.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	replies, err := request.Execute(unix.NETLINK_NETFILTER, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWCHAIN)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list nftables chains: %w", err)
	}
	var chains []FirewallChain
	for _, reply := range replies {
		if len(reply) < nl.SizeofNfgenmsg {
			continue
		}
		attributes, err := nl.ParseRouteAttr(reply[nl.SizeofNfgenmsg:])
		if err != nil {
			return nil, fmt.Errorf("list nftables chains: %w", err)
		}
		chain, isBase := FirewallChain{Family: firewallFamilies()[reply[0]]}, false
		for _, a := range attributes {
			switch a.Attr.Type &^ unix.NLA_F_NESTED {
			case unix.NFTA_CHAIN_TABLE:
				chain.Table = unix.ByteSliceToString(a.Value)
			case unix.NFTA_CHAIN_NAME:
				chain.Name = unix.ByteSliceToString(a.Value)
			case unix.NFTA_CHAIN_POLICY:
				chain.Drops = len(a.Value) == 4 && binary.BigEndian.Uint32(a.Value) == 0 // NF_DROP
			case unix.NFTA_CHAIN_HOOK:
				isBase = true
				hooks, err := nl.ParseRouteAttr(a.Value)
				if err != nil {
					return nil, fmt.Errorf("list nftables chains: %w", err)
				}
				for _, h := range hooks {
					if h.Attr.Type == unix.NFTA_HOOK_HOOKNUM && len(h.Value) == 4 {
						chain.Hook = binary.BigEndian.Uint32(h.Value)
					}
				}
			}
		}
		if isBase {
			chains = append(chains, chain)
		}
	}
	return chains, nil
}
