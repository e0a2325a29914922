package config

import (
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Address is a host and a port. The zero value means none.
type Address struct {
	Host string // name or IP address, without brackets
	Port uint16
}

// String gives host:port, or nothing for none.
func (a Address) String() string {
	if a == (Address{}) {
		return ""
	}
	return net.JoinHostPort(a.Host, strconv.Itoa(int(a.Port)))
}

// Wildcard reports whether listening there means every address of the machine, which nobody can connect to.
func (a Address) Wildcard() bool {
	if a.Host == "" {
		return true
	}
	ip, err := netip.ParseAddr(a.Host)
	return err == nil && ip.IsUnspecified()
}

// want is the error of a value that is not what was wanted.
type want string

// Error implements error.
func (w want) Error() string { return "want " + string(w) }

const errAddress want = "host:port, such as 127.0.0.1:9092"

var hostPattern = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,252})$`)

// parseAddress reads host:port or :port.
func parseAddress(value string) (Address, error) {
	host, port, err := net.SplitHostPort(value)
	if err != nil {
		return Address{}, errAddress
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return Address{}, want("a port from 0 to 65535 after the last colon")
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "" && !hostPattern.MatchString(host) {
		return Address{}, want("a host name or an IP address (IPv6 in brackets) before the port")
	}
	return Address{Host: host, Port: uint16(n)}, nil
}

// parsePublicAddress reads an address that somebody else can connect to.
func parsePublicAddress(value string) (Address, error) {
	a, err := parseAddress(value)
	if err == nil && (a.Wildcard() || a.Port == 0) {
		err = want("host:port that clients can connect to, with a host that is not a wildcard and a port above 0")
	}
	return a, err
}

// parseEndpoints reads the URLs of etcd's members.
func parseEndpoints(value string) ([]string, error) {
	parts := strings.Split(value, ",")
	for i, part := range parts {
		part = strings.TrimSpace(part)
		u, err := url.Parse(part)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil ||
			strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
			return nil, want("URL[,URL]..., each http://host:port or https://host:port and no more")
		}
		parts[i] = strings.TrimRight(part, "/")
	}
	if len(parts) > endpointsMax {
		return nil, want("at most " + strconv.Itoa(endpointsMax) + " URLs")
	}
	return parts, nil
}

// endpointsMax is more than any etcd cluster has members.
const endpointsMax = 16

var (
	clusterPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
	zonePattern    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$`)
)

const errZone want = "1 to 128 letters, digits and ._:/- that begin with a letter or digit"

// parseZones reads the names of zones.
func parseZones(value string) ([]string, error) {
	zones := strings.Split(value, ",")
	for _, z := range zones {
		if !zonePattern.MatchString(z) {
			return nil, "zones with commas between them, each of " + errZone
		}
	}
	return zones, nil
}

func parsePattern(pattern *regexp.Regexp, value string, wanted want) (string, error) {
	if !pattern.MatchString(value) {
		return "", wanted
	}
	return value, nil
}

func parseBool(value string) (bool, error) {
	switch value {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, want("true or false")
}

func parseNumber(value string, high uint64) (uint64, error) {
	n, err := strconv.ParseUint(value, 10, 64)
	if err != nil || n < 1 || n > high {
		return 0, want("a whole number from 1 to " + strconv.FormatUint(high, 10))
	}
	return n, nil
}

// units of sizes. A number without one counts bytes.
var units = []struct {
	name  string
	shift uint
}{{"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"", 0}}

// parseSize reads a number of bytes.
func parseSize(value string, low, high int64) (int64, error) {
	wanted := want("a size such as 256MiB (KiB, MiB, GiB, or bytes without a unit) from " + formatSize(low) + " to " + formatSize(high))
	for _, unit := range units {
		digits, found := strings.CutSuffix(value, unit.name)
		if !found {
			continue
		}
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || n < 0 || n > high>>unit.shift || n<<unit.shift < low {
			return 0, wanted
		}
		return n << unit.shift, nil
	}
	return 0, wanted
}

// formatSize prints a number of bytes as parseSize reads it, in the largest unit that divides it.
func formatSize(bytes int64) string {
	name, shift := "", uint(0)
	for _, unit := range units {
		if unit.shift > shift && bytes != 0 && bytes%(1<<unit.shift) == 0 {
			name, shift = unit.name, unit.shift
		}
	}
	return strconv.FormatInt(bytes>>shift, 10) + name
}

// parseDuration reads a time such as 15m or 24h.
func parseDuration(value string, high time.Duration) (time.Duration, error) {
	const low = time.Second
	d, err := time.ParseDuration(value)
	if err != nil || d < low || d > high {
		return 0, want("a time such as 90s, 15m or 24h from " + formatDuration(low) + " to " + formatDuration(high))
	}
	return d, nil
}

// formatDuration prints a time without parts that are zero.
func formatDuration(d time.Duration) string {
	s := strings.TrimSuffix(d.String(), "0s")
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

func parseLevel(value string) (slog.Level, error) {
	switch value {
	case "debug":
		return slog.LevelDebug, nil
	case "info":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, want("debug, info, warn or error")
}
