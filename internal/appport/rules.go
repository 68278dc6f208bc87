package appport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The names in nf_tables.
const (
	tableName = "crossfade"
	chainName = "app_ports"
)

// Rules is the text of what [Protect] loads, for nft.
func Rules(ports ...int) string {
	var out strings.Builder
	fmt.Fprintf(&out, "table inet %s {\n  chain %s {\n    type filter hook input priority -10; policy accept;\n", tableName, chainName)
	for _, p := range sorted(ports) {
		fmt.Fprintf(&out, "    iifname != \"lo\" tcp dport %d reject with tcp reset\n", p)
	}
	out.WriteString("  }\n}\n")
	return out.String()
}

func sorted(ports []int) []int {
	out := slices.Clone(ports)
	slices.Sort(out)
	return slices.Compact(out)
}

// Protected lists the ports that are protected in this network namespace, sorted. It takes
// the right to administer the network (CAP_NET_ADMIN); [os.ErrPermission] without.
func Protected() ([]int, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("nf_tables: %w", err)
	}
	// Of a table that is not there the kernel lists no rules.
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName}
	rules, err := c.GetRules(table, &nftables.Chain{Table: table, Name: chainName})
	if err != nil {
		return nil, wrong(err)
	}
	var out []int
	for _, r := range rules {
		if p, ok := portOf(r); ok {
			out = append(out, p)
		}
	}
	return sorted(out), nil
}

// Protect refuses TCP connections to the ports that don't come over loopback, beside those
// that are protected already. What is established stays.
func Protect(ports ...int) error {
	have, err := Protected()
	if err != nil {
		return err
	}
	return load(sorted(append(have, ports...)))
}

// Unprotect takes the rules of the ports away, and the table with the last one.
func Unprotect(ports ...int) error {
	have, err := Protected()
	if err != nil {
		return err
	}
	return load(slices.DeleteFunc(have, func(p int) bool { return slices.Contains(ports, p) }))
}

// load puts rules for exactly these ports in place of those that are there, at once.
func load(ports []int) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nf_tables: %w", err)
	}
	old, err := find(c)
	if err != nil {
		return err
	}
	if old != nil {
		c.DelTable(old.Table)
	}
	if len(ports) > 0 {
		table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: tableName})
		accept := nftables.ChainPolicyAccept
		chain := c.AddChain(&nftables.Chain{
			Name: chainName, Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput,
			Priority: nftables.ChainPriorityRef(-10), Policy: &accept,
		})
		for _, p := range ports {
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: refuse(p)})
		}
	}
	return wrong(c.Flush())
}

// refuse is: not over loopback, TCP, to the port: reset.
func refuse(port int) []expr.Any {
	lo := make([]byte, unix.IFNAMSIZ)
	copy(lo, "lo")
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: lo},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(uint16(port))},
		&expr.Reject{Type: unix.NFT_REJECT_TCP_RST},
	}
}

// portOf reads a rule of ours back.
func portOf(r *nftables.Rule) (int, bool) {
	reject := slices.ContainsFunc(r.Exprs, func(e expr.Any) bool { _, ok := e.(*expr.Reject); return ok })
	for i, e := range r.Exprs {
		p, ok := e.(*expr.Payload)
		if !ok || p.Base != expr.PayloadBaseTransportHeader || p.Offset != 2 || i+1 >= len(r.Exprs) {
			continue
		}
		if c, ok := r.Exprs[i+1].(*expr.Cmp); ok && len(c.Data) == 2 && reject {
			return int(binary.BigEndian.Uint16(c.Data)), true
		}
	}
	return 0, false
}

// find is our chain, or nil.
func find(c *nftables.Conn) (*nftables.Chain, error) {
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, wrong(err)
	}
	for _, chain := range chains {
		if chain.Table.Name == tableName && chain.Name == chainName {
			return chain, nil
		}
	}
	return nil, nil
}

func wrong(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("nf_tables: it takes the right to administer the network: run as root: %w", os.ErrPermission)
	}
	return fmt.Errorf("nf_tables: %w", err)
}
