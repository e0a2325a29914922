// Package network makes a network of hosts on one Linux machine, for tests that run real processes, and cuts the links between
// them, each direction by itself.
//
//	n, err := network.New(ctx)
//	a, err := n.Host(ctx, "a")
//	b, err := n.Host(ctx, "b")
//	servers.StartEtcd(ctx, servers.EtcdOptions{Under: a.Under(), Listen: a.Address + ":2379", ...})
//	n.Cut(ctx, a, b) // what a sends to b is lost; b's packets arrive
//	n.Mend(ctx, a, b)
//
// A host is a network namespace and a mount namespace, with an address of its own on a switch that all share. The process
// that made the network is a host as well, [Network.Here], so that its clients can be cut off too.
//
// What is sent over a cut link is lost without a word, as in a switch that fails: no connection is reset, no address becomes
// unreachable. (The sender is given a hardware address that nobody has. A firewall's rule would do the same and takes more
// than iproute2.) All that comes after a TCP handshake needs both directions for long, so that a cut one way stalls a
// connection both ways in the end; but one side has received what the other does not know to have arrived.
//
// It needs root, and ip, unshare and nsenter. Nothing of it is left when the process ends, however it ends.
package network

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
)

// Network is a switch and the hosts that hang on it. Links may be cut and mended by several goroutines; hosts are added by one.
type Network struct {
	prefix netip.Prefix
	hub    *space
	here   *Host
	spaces []*space
	ports  int

	mu   sync.Mutex
	cuts map[link]bool
}

// link is one direction between two hosts.
type link struct{ from, to *Host }

// Host has an address in the network.
type Host struct {
	// Name is for messages.
	Name string
	// Address is the IP address, without a port. Every port of it is free as far as its own processes leave it.
	Address string

	device string
	space  *space // nil for this process's own
}

// hostsMax is how many hosts fit behind one another into the network's addresses.
const hostsMax = 200

// nobody is a hardware address that no host has. It is of those that anybody may give out (the second bit is set).
const nobody = "02:00:00:00:00:01"

// New makes a network whose only host is this process.
func New(ctx context.Context) (*Network, error) {
	n := &Network{cuts: make(map[link]bool)}
	if err := n.make(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("make a network of hosts, which takes root: %w", err), n.Close())
	}
	return n, nil
}

func (n *Network) make(ctx context.Context) (err error) {
	if n.prefix, err = freePrefix(); err != nil {
		return err
	}
	if n.hub, err = n.newSpace(ctx); err != nil {
		return err
	}
	if err := n.hub.run(ctx, "ip", "link", "add", bridge, "up", "type", "bridge"); err != nil {
		return err
	}
	// Devices of this process's namespace are everybody's, and go a little later than what held them: the name is the address's.
	n.here, err = n.attach(ctx, "here", "varve"+strconv.Itoa(int(n.prefix.Addr().As4()[2])), nil)
	return err
}

const bridge = "bridge0"

// freePrefix chooses addresses of which this machine has none, from those that are set aside for tests (RFC 2544).
func freePrefix() (netip.Prefix, error) {
	used, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Prefix{}, err
	}
	for i := range 256 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(os.Getpid() + i), 0}), 24)
		taken := slices.ContainsFunc(used, func(a net.Addr) bool {
			other, err := netip.ParsePrefix(a.String())
			return err == nil && other.Overlaps(p)
		})
		if !taken {
			return p, nil
		}
	}
	return netip.Prefix{}, errors.New("no address left")
}

// Here is this process's host.
func (n *Network) Here() *Host { return n.here }

// Host adds a host.
func (n *Network) Host(ctx context.Context, name string) (*Host, error) {
	s, err := n.newSpace(ctx)
	if err != nil {
		return nil, fmt.Errorf("make host %s: %w", name, err)
	}
	h, err := n.attach(ctx, name, "eth0", s)
	if err != nil {
		return nil, fmt.Errorf("make host %s: %w", name, err)
	}
	return h, nil
}

// attach connects a namespace to the switch and gives it an address. The space is nil for this process's own.
func (n *Network) attach(ctx context.Context, name, device string, s *space) (*Host, error) {
	if n.ports++; n.ports > hostsMax {
		return nil, fmt.Errorf("more than %d hosts", hostsMax)
	}
	octets := n.prefix.Addr().As4()
	octets[3] = byte(n.ports)
	h := &Host{Name: name, Address: netip.AddrFrom4(octets).String(), device: device, space: s}
	port := "port" + strconv.Itoa(n.ports)
	err := h.Run(ctx, "ip", "link", "add", device, "type", "veth", "peer", "name", port, "netns", strconv.Itoa(n.hub.pid()))
	if err == nil {
		err = n.hub.run(ctx, "ip", "link", "set", port, "master", bridge, "up")
	}
	if err == nil {
		err = h.Run(ctx, "ip", "address", "add", h.Address+"/24", "dev", device)
	}
	if err == nil {
		err = h.Run(ctx, "ip", "link", "set", device, "up")
	}
	return h, err
}

// Cut loses what one host sends to another from now on. It does nothing to a link that is cut.
func (n *Network) Cut(ctx context.Context, from, to *Host) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cuts[link{from, to}] {
		return nil
	}
	err := from.Run(ctx, "ip", "neighbour", "replace", to.Address, "lladdr", nobody, "dev", from.device, "nud", "permanent")
	if err != nil {
		return fmt.Errorf("cut the link from %s to %s: %w", from.Name, to.Name, err)
	}
	n.cuts[link{from, to}] = true
	return nil
}

// Mend undoes Cut. It does nothing to a link that is not cut.
func (n *Network) Mend(ctx context.Context, from, to *Host) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.cuts[link{from, to}] {
		return nil
	}
	if err := from.Run(ctx, "ip", "neighbour", "delete", to.Address, "dev", from.device); err != nil {
		return fmt.Errorf("mend the link from %s to %s: %w", from.Name, to.Name, err)
	}
	delete(n.cuts, link{from, to})
	return nil
}

// Close ends the hosts. Processes that still run on them keep their namespace, but reach nobody any more.
func (n *Network) Close() error {
	var errs []error
	for _, s := range n.spaces {
		errs = append(errs, s.close())
	}
	n.spaces = nil
	return errors.Join(errs...)
}

// Under is the command under which a process runs on the host; empty for this process's own.
func (h *Host) Under() []string {
	if h.space == nil {
		return nil
	}
	return h.space.under()
}

// Run runs a command on the host to its end. What it mounts is mounted for this host alone.
func (h *Host) Run(ctx context.Context, argv ...string) error {
	if h.space == nil {
		return run(ctx, argv)
	}
	return h.space.run(ctx, argv...)
}

// space is a network and a mount namespace, held by a process that ends when this one does.
type space struct {
	keeper *exec.Cmd
	hold   io.Closer
}

// newSpace makes namespaces in which nothing is configured but the loopback device.
func (n *Network) newSpace(ctx context.Context) (*space, error) {
	// The shell's end of the pipe ends with this process, and then cat ends, and the namespaces with it.
	keeper := exec.CommandContext(context.WithoutCancel(ctx), "unshare", "--net", "--mount", "--propagation", "private",
		"sh", "-c", "ip link set lo up && echo up && exec cat")
	hold, err := keeper.StdinPipe()
	if err != nil {
		return nil, err
	}
	said, err := keeper.StdoutPipe()
	if err != nil {
		return nil, err
	}
	complaints := new(limited)
	keeper.Stderr = complaints
	if err := keeper.Start(); err != nil {
		return nil, err
	}
	s := &space{keeper: keeper, hold: hold}
	if line, err := bufio.NewReader(said).ReadString('\n'); err != nil || line != "up\n" {
		return nil, errors.Join(fmt.Errorf("make namespaces: %s", complaints.text), err, s.close())
	}
	n.spaces = append(n.spaces, s)
	return s, nil
}

// limited keeps the beginning of what a command complains about.
type limited struct{ text []byte }

// Write implements io.Writer.
func (l *limited) Write(p []byte) (int, error) {
	const most = 1 << 10
	l.text = append(l.text, p[:min(len(p), most-len(l.text))]...)
	return len(p), nil
}

func (s *space) pid() int { return s.keeper.Process.Pid }

func (s *space) under() []string {
	return []string{"nsenter", "--target", strconv.Itoa(s.pid()), "--net", "--mount", "--"}
}

func (s *space) run(ctx context.Context, argv ...string) error {
	return run(ctx, append(s.under(), argv...))
}

func run(ctx context.Context, argv []string) error {
	if said, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%q: %w: %s", argv, err, said)
	}
	return nil
}

// close ends the keeper.
func (s *space) close() error {
	_ = s.hold.Close() // which is what cat waits for
	if err := s.keeper.Wait(); err != nil {
		return fmt.Errorf("end a namespace: %w", err)
	}
	return nil
}
