package network

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"
)

// echoAt tells the test program to be an echo server at that address instead.
const echoAt = "VARVE_NETWORK_ECHO"

func TestMain(m *testing.M) {
	if address := os.Getenv(echoAt); address != "" {
		fmt.Println(echo(address))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// echo prints each datagram that arrives, and sends it back. It returns only if that fails.
func echo(address string) error {
	at, err := net.ResolveUDPAddr("udp", address)
	if err != nil {
		return err
	}
	conn, err := net.ListenUDP("udp", at)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	b := make([]byte, 100)
	for {
		n, from, err := conn.ReadFrom(b)
		if err != nil {
			return err
		}
		fmt.Println(string(b[:n]))
		if _, err := conn.WriteTo(b[:n], from); err != nil {
			return err
		}
	}
}

// TestCut sends numbered datagrams to an echo server on another host. Each direction is cut and mended by itself; which
// datagrams are lost shows at the next one that arrives.
func TestCut(t *testing.T) {
	n, err := New(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	host, err := n.Host(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	arrived, conn := startEcho(t, host)
	send := func(what string) {
		t.Helper()
		if _, err := conn.Write([]byte(what)); err != nil {
			t.Fatal(err)
		}
	}
	there := func(want string) {
		t.Helper()
		if !arrived.Scan() || arrived.Text() != want {
			t.Fatalf("%q arrived, want %q: %v", arrived.Text(), want, arrived.Err())
		}
	}
	back := func(want string) {
		t.Helper()
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		if n, err := conn.Read(b); err != nil || string(b[:n]) != want {
			t.Fatalf("%q came back, want %q: %v", b[:n], want, err)
		}
	}
	do := func(f error) {
		t.Helper()
		if f != nil {
			t.Fatal(f)
		}
	}

	send("1")
	there("1")
	back("1")
	do(n.Cut(t.Context(), n.Here(), host))
	do(n.Cut(t.Context(), n.Here(), host))
	send("2")
	do(n.Mend(t.Context(), n.Here(), host))
	send("3")
	there("3")
	back("3")
	do(n.Cut(t.Context(), host, n.Here()))
	send("4")
	there("4")
	do(n.Mend(t.Context(), host, n.Here()))
	do(n.Mend(t.Context(), host, n.Here()))
	send("5")
	there("5")
	back("5")
}

// startEcho starts an echo server on a host, and returns its output and a connection to it.
func startEcho(t *testing.T, host *Host) (*bufio.Scanner, net.Conn) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	address := net.JoinHostPort(host.Address, "7")
	argv := append(host.Under(), self)
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), echoAt+"="+address)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() }) // t.Context's end has killed it
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "ready" {
		t.Fatalf("the echo server says %q: %v", lines.Text(), lines.Err())
	}
	conn, err := new(net.Dialer).DialContext(t.Context(), "udp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return lines, conn
}

// TestMountsAreOfOneHost mounts something on one host, which neither another nor this process sees.
func TestMountsAreOfOneHost(t *testing.T) {
	n, err := New(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	folder := t.TempDir()
	var hosts []*Host
	for _, name := range []string{"a", "b"} {
		h, err := n.Host(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, h)
	}
	if err := hosts[0].Run(t.Context(), "mount", "-t", "tmpfs", "tmpfs", folder); err != nil {
		t.Fatal(err)
	}
	if err := hosts[0].Run(t.Context(), "touch", folder+"/a"); err != nil {
		t.Fatal(err)
	}
	if err := hosts[1].Run(t.Context(), "test", "-e", folder+"/a"); err == nil {
		t.Error("another host sees it")
	}
	if _, err := os.Stat(folder + "/a"); err == nil {
		t.Error("this process sees it")
	}
}
