// Package hostnet gives a cluster's nodes a network on this machine: a bridge on the host, and
// a network namespace with one address for each node. The names of everything it creates
// contain the cluster's id, and Remove removes all of it.
//
// Nodes have no route out of the machine unless the cluster has egress. The host answers
// packets for the ranges of pods and Services with 'unreachable', so that a packet that no rule
// matches does not leave the machine.
//
// The package must never change a link, route or rule that it did not create.
package hostnet

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"keelson.dev/tools/keel/internal/cluster"
	"keelson.dev/tools/keel/internal/supervise"
)

// Ensure creates what is missing of the cluster's network.
func Ensure(c *cluster.Cluster) error {
	bridge, err := ensureBridge(c)
	if err != nil {
		return err
	}
	for i, n := range c.Nodes {
		if err := ensureNode(c, bridge, i, n); err != nil {
			return fmt.Errorf("network of %s: %w", n.Name, err)
		}
	}
	if err := errors.Join(BlockRanges(c), ensureForwarding(c)); err != nil {
		return err
	}
	if c.Egress {
		return ensureEgress(c)
	}
	return nil
}

func ensureBridge(c *cluster.Cluster) (netlink.Link, error) {
	link, err := netlink.LinkByName(c.Bridge())
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		err = netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: c.Bridge()}})
		if err == nil {
			link, err = netlink.LinkByName(c.Bridge())
		}
	}
	if err != nil {
		return nil, fmt.Errorf("bridge %s: %w", c.Bridge(), err)
	}
	cidrs := []string{c.NodeCIDR()}
	for _, m := range c.Members {
		if m.IP != c.Gateway() {
			cidrs = append(cidrs, m.IP+"/24")
		}
	}
	for _, cidr := range cidrs {
		addr, err := netlink.ParseAddr(cidr)
		if err != nil {
			return nil, err
		}
		if err := netlink.AddrReplace(link, addr); err != nil {
			return nil, fmt.Errorf("address %s of %s: %w", cidr, c.Bridge(), err)
		}
	}
	return link, netlink.LinkSetUp(link)
}

// veth returns the name of the host's end of a node's link, which has at most 15 characters.
func veth(c *cluster.Cluster, i int) string { return fmt.Sprintf("%s%s-%d", vethPrefix, c.ID, i) }

func ensureNode(c *cluster.Cluster, bridge netlink.Link, i int, n cluster.Node) error {
	ns, err := ensureNamespace(c.Namespace(n.Name))
	if err != nil {
		return err
	}
	defer ns.Close()
	host := veth(c, i)
	if _, err := netlink.LinkByName(host); errors.As(err, &netlink.LinkNotFoundError{}) {
		pair := &netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: host, MasterIndex: bridge.Attrs().Index},
			PeerName:      "eth0",
			PeerNamespace: netlink.NsFd(int(ns)),
		}
		if err := netlink.LinkAdd(pair); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	link, err := netlink.LinkByName(host)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	eth, err := h.LinkByName("eth0")
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(n.IP + "/24")
	if err != nil {
		return err
	}
	if err := errors.Join(h.LinkSetUp(lo), h.AddrReplace(eth, addr), h.LinkSetUp(eth)); err != nil {
		return err
	}
	if c.Egress {
		return h.RouteReplace(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: net.ParseIP(c.Gateway())})
	}
	return nil
}

func ensureNamespace(name string) (netns.NsHandle, error) {
	if ns, err := netns.GetFromName(name); err == nil {
		return ns, nil
	}
	type result struct {
		ns  netns.NsHandle
		err error
	}
	ch := make(chan result, 1)
	go func() {
		// NewNamed moves this thread into the new namespace, so the thread must not be reused.
		lockThread()
		ns, err := netns.NewNamed(name)
		ch <- result{ns, err}
	}()
	r := <-ch
	if r.err != nil {
		return r.ns, fmt.Errorf("network namespace %s: %w", name, r.err)
	}
	return r.ns, nil
}

// BlockRanges makes the host answer 'unreachable' for the cluster's ranges, which have no
// meaning outside the nodes' namespaces.
func BlockRanges(c *cluster.Cluster) error {
	return Block(c.ClusterCIDR, c.ServiceCIDR, c.LoadBalancerCIDR())
}

// Block makes the host answer 'unreachable' for ranges to which it has no route.
func Block(cidrs ...string) error {
	for _, cidr := range cidrs {
		_, dst, err := net.ParseCIDR(cidr)
		if err != nil {
			return err
		}
		routes, err := dump(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: dst}, netlink.RT_FILTER_DST)
		})
		if err != nil {
			return err
		}
		if len(routes) > 0 {
			continue
		}
		err = netlink.RouteAdd(&netlink.Route{Dst: dst, Type: syscall.RTN_UNREACHABLE, Priority: blockPriority})
		if err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("unreachable route for %s: %w", cidr, err)
		}
	}
	return nil
}

// blockPriority identifies keel's unreachable routes, and gives any other route precedence.
const blockPriority = 4_278_198_272

func ensureEgress(c *cluster.Cluster) error {
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return err
	}
	table := tableName(c.ID)
	rules := fmt.Sprintf(`add table ip %[1]s
delete table ip %[1]s
table ip %[1]s {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 10.89.%[2]d.0/24 oifname != "%[3]s" masquerade
	}
}
`, table, c.Subnet, c.Bridge())
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, out)
	}
	return nil
}

// Remove removes everything that Ensure created for the cluster with an id, and continues after
// a failure. Other clusters on this machine keep their networks; the shared unreachable routes
// are removed with the last cluster.
func Remove(id string) error {
	var errs []error
	for _, ns := range namespaces(id) {
		errs = append(errs, deleteNamespace(ns))
	}
	own, others, err := links(id)
	errs = append(errs, err)
	for _, l := range own {
		if err := netlink.LinkDel(l); err != nil && !errors.Is(err, syscall.ENODEV) && !errors.As(err, &netlink.LinkNotFoundError{}) {
			errs = append(errs, fmt.Errorf("link %s: %w", l.Attrs().Name, err))
		}
	}
	if err == nil {
		errs = append(errs, removeRoutes(others))
	}
	errs = append(errs, removeForwarding(id))
	if table := tableName(id); hasTable(table) {
		errs = append(errs, run("nft", "delete", "table", "ip", table))
	}
	return errors.Join(errs...)
}

// RemoveNode removes the network of one of the cluster's nodes.
func RemoveNode(c *cluster.Cluster, n cluster.Node) error {
	errs := []error{deleteNamespace(c.Namespace(n.Name))}
	link, err := netlink.LinkByName(veth(c, n.Index()))
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil && !errors.As(err, &netlink.LinkNotFoundError{}) && !errors.Is(err, syscall.ENODEV) {
		errs = append(errs, fmt.Errorf("link of %s: %w", n.Name, err))
	}
	return errors.Join(errs...)
}

// Left describes what is left of the network of the cluster with an id, for messages.
func Left(id string) ([]string, error) {
	var out []string
	for _, ns := range namespaces(id) {
		out = append(out, "network namespace "+ns)
	}
	own, _, err := links(id)
	for _, l := range own {
		out = append(out, "link "+l.Attrs().Name)
	}
	for _, program := range iptables() {
		list, ruleErr := rulesOf(program, id)
		err = errors.Join(err, ruleErr)
		for _, rule := range list {
			out = append(out, program+" rule "+strings.Join(rule, " "))
		}
	}
	if table := tableName(id); hasTable(table) {
		out = append(out, "nftables table ip "+table)
	}
	return out, err
}

func tableName(id string) string { return "keelson-" + id }

func hasTable(name string) bool { return exec.Command("nft", "list", "table", "ip", name).Run() == nil }

// links returns the cluster's links, and the third bytes of the addresses of other clusters'
// bridges.
func links(id string) (own []netlink.Link, others map[byte]bool, err error) {
	all, err := dump(netlink.LinkList)
	if err != nil {
		return nil, nil, fmt.Errorf("list links: %w", err)
	}
	others = map[byte]bool{}
	for _, l := range all {
		name := l.Attrs().Name
		switch {
		case name == bridgePrefix+id || strings.HasPrefix(name, vethPrefix+id+"-"):
			own = append(own, l)
		case strings.HasPrefix(name, bridgePrefix) && cluster.ValidID(strings.TrimPrefix(name, bridgePrefix)) == nil && l.Type() == "bridge":
			addresses, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(l, netlink.FAMILY_V4) })
			if err != nil {
				return nil, nil, fmt.Errorf("addresses of %s: %w", name, err)
			}
			for _, a := range addresses {
				if ip := a.IP.To4(); ip[0] == 10 && ip[1] == 89 {
					others[ip[2]] = true
				}
			}
		}
	}
	return own, others, nil
}

// These are the prefixes of links' names.
const (
	bridgePrefix = "ks"
	vethPrefix   = "kv"
)

// routeProtocol identifies the routes that the cloud-controller's local provider creates.
const routeProtocol = 76

// removeRoutes removes the load balancers' routes of clusters whose bridge is gone, and with
// the last cluster the shared unreachable routes.
func removeRoutes(others map[byte]bool) error {
	routes, err := dump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_V4) })
	errs := []error{err}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		ip := r.Dst.IP.To4()
		ones, _ := r.Dst.Mask.Size()
		balancer := ip != nil && ip[0] == 10 && ip[1] == 90 && ones >= 24
		blocked := r.Type == syscall.RTN_UNREACHABLE && r.Priority == blockPriority
		orphaned := balancer && !others[ip[2]] && (blocked || r.Protocol == routeProtocol)
		if orphaned || blocked && !balancer && len(others) == 0 {
			if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, syscall.ESRCH) {
				errs = append(errs, fmt.Errorf("route %s: %w", r.Dst, err))
			}
		}
	}
	return errors.Join(errs...)
}

func deleteNamespace(name string) error {
	err := netns.DeleteNamed(name)
	if errors.Is(err, syscall.EINVAL) { // a file on which nothing is mounted
		err = os.Remove(filepath.Join(netnsDir, name))
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("network namespace %s: %w", name, err)
	}
	return nil
}

// netnsDir is where named network namespaces are mounted (ip-netns(8)).
const netnsDir = "/run/netns"

// namespaces returns the names of the cluster's existing namespaces.
func namespaces(id string) []string {
	c := cluster.Cluster{ID: id}
	matches, _ := filepath.Glob(filepath.Join(netnsDir, c.Namespace("*")))
	for i, m := range matches {
		matches[i] = filepath.Base(m)
	}
	return matches
}

// Within runs f in a node's network namespace.
func Within(c *cluster.Cluster, node string, f func() error) error {
	return supervise.InNamespace(c.Namespace(node), f)
}
