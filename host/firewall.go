package host

import (
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
	families := map[uint8]string{unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6",
		unix.NFPROTO_ARP: "arp", unix.NFPROTO_BRIDGE: "bridge", unix.NFPROTO_NETDEV: "netdev"}
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
				tables = append(tables, families[reply[0]]+" "+unix.ByteSliceToString(a.Value))
			}
		}
	}
	slices.Sort(tables)
	return tables, nil
}
