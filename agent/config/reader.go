package config

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/varve-io/varve/objectstore/bucket"
)

// Reader reads a command's configuration.
type Reader struct {
	command  Command
	flags    *pflag.FlagSet
	settings []setting
}

// Bind defines the command's flags, which the caller parses before [Reader.Read].
func Bind(command Command, flags *pflag.FlagSet) *Reader {
	r := &Reader{command: command, flags: flags}
	for _, s := range settings() {
		if !s.has(command) {
			continue
		}
		r.settings = append(r.settings, s)
		flags.String(s.name, s.value, s.usage)
	}
	if command == Agent {
		flags.String(configName, "", "YAML `file` of settings, under the names of the flags")
	}
	return r
}

// source is a value and where it stands.
type source struct{ value, place string }

// Read returns the configuration, from the flags, from the environment, from the file that is named there, and from
// defaults. It asks env for variables and file for the file's content. Every error is an [*Error].
func (r *Reader) Read(env func(string) (string, bool), file func(name string) ([]byte, error)) (Config, error) {
	if r.command == Inspect { // the environment, where both etcd and bucket may be for other commands, would not say which is meant
		env = func(string) (string, bool) { return "", false }
	}
	inFile, err := r.readFile(env, file)
	if err != nil {
		return Config{}, err
	}
	c := Config{Cluster: devCluster, Agents: 1, places: make(map[string]string, len(r.settings))}
	for i := range r.settings {
		s := &r.settings[i]
		from, given := r.given(s.name, env)
		if !given {
			from, given = inFile[s.name]
		}
		if !given {
			from = source{s.value, defaultOf(s.name)}
			if s.value == "" {
				if s.required && (r.command == Agent || r.command == Restore) {
					return Config{}, &Error{Place: "--" + s.name, Seen: "none", Want: r.wanted(s)}
				}
				continue
			}
		}
		if err := s.read(&c, from); err != nil {
			return Config{}, err
		}
		c.places[s.name] = from.place
	}
	switch r.command {
	case Status:
		return c, c.checkStatus()
	case Inspect:
		return c, c.checkInspect()
	case Fsck, Cost:
		return c, c.checkFsck()
	case Restore:
		return c, nil
	case Dev, Agent:
	}
	return c, c.check()
}

// given returns what a flag or the environment says.
func (r *Reader) given(name string, env func(string) (string, bool)) (source, bool) {
	if flag := r.flags.Lookup(name); flag != nil && flag.Changed {
		return source{flag.Value.String(), "--" + name}, true
	}
	if value, _ := env(envName(name)); value != "" {
		return source{value, envName(name)}, true
	}
	return source{}, false
}

// readFile returns what the file says, if one is named.
func (r *Reader) readFile(env func(string) (string, bool), file func(name string) ([]byte, error)) (map[string]source, error) {
	if r.command != Agent {
		return nil, nil
	}
	from, given := r.given(configName, env)
	if !given {
		return nil, nil
	}
	if from.value == "" {
		return nil, &Error{Place: from.place, Seen: `""`, Want: "the path of a YAML file"}
	}
	content, err := file(from.value)
	if err != nil {
		return nil, &Error{Place: from.place, Err: oneLine(err)}
	}
	return parseFile(from.value, content, r.settings)
}

// read parses a value into c.
func (s *setting) read(c *Config, from source) error {
	if from.value == "" {
		return &Error{Place: from.place, Seen: `""`, Want: "a value; leave it out for the default"}
	}
	err := s.parse(c, from.value)
	var wanted want
	switch {
	case err == nil:
		return nil
	case errors.As(err, &wanted):
		return &Error{Place: from.place, Seen: quote(from.value), Want: string(wanted)}
	default:
		return &Error{Place: from.place, Err: oneLine(err)}
	}
}

// check finds settings that contradict each other.
func (c *Config) check() error {
	if c.Listen.Wildcard() && c.Advertise == (Address{}) {
		return &Error{
			Place: c.Place("listen"), Seen: quote(c.Listen.String()) + " without --advertise",
			Want: "--advertise host:port, which clients are told to connect to when --listen names no address of its own",
		}
	}
	if c.Balancer && c.Advertise == (Address{}) {
		return &Error{
			Place: c.Place("advertise-mode"), Seen: "balancer without --advertise",
			Want: "--advertise host:port, at which clients reach the load balancer",
		}
	}
	if c.Balancer && c.PeerListen == (Address{}) {
		return &Error{
			Place: c.Place("advertise-mode"), Seen: "balancer without --peer-listen",
			Want: "--peer-listen host:port, where agents pass each other the requests of clients",
		}
	}
	if c.WALCopies > 1 && c.PeerListen == (Address{}) {
		return &Error{
			Place: c.Place("wal-copies"), Seen: strconv.Itoa(c.WALCopies) + " without --peer-listen",
			Want: "--peer-listen host:port, where agents bring each other their copies, or --wal-copies 1 for an agent alone",
		}
	}
	if int(max(c.Listen.Port, c.Advertise.Port))+c.Agents-1 > math.MaxUint16 {
		return &Error{
			Place: c.Place("agents"), Seen: strconv.Itoa(c.Agents) + " from port " + strconv.Itoa(int(max(c.Listen.Port, c.Advertise.Port))),
			Want: "a port of --listen, and of --advertise, that is followed by one for each further agent",
		}
	}
	if c.PeerListen.Wildcard() && c.PeerListen != (Address{}) && c.PeerAdvertise == (Address{}) {
		return &Error{
			Place: c.Place("peer-listen"), Seen: quote(c.PeerListen.String()) + " without --peer-advertise",
			Want: "--peer-advertise host:port, which other agents connect to when --peer-listen names no address of its own",
		}
	}
	return nil
}

// checkStatus settles which cluster is meant: without etcd's URLs, that of a dev.
func (c *Config) checkStatus() error {
	if len(c.Etcd) > 0 {
		return nil
	}
	if place := c.Place("cluster"); place != defaultOf("cluster") {
		return &Error{
			Place: place, Seen: quote(c.Cluster) + " without --etcd", Want: "--etcd URL[,URL] of that cluster; without it, the varve dev of --data is meant",
		}
	}
	c.Cluster = devCluster
	return nil
}

// checkFsck settles which cluster is meant, and wants both of its parts.
func (c *Config) checkFsck() error {
	inBucket := c.Bucket != (bucket.URL{})
	switch {
	case len(c.Etcd) > 0 && !inBucket:
		return &Error{Place: c.Place("etcd"), Seen: "no --bucket", Want: "--bucket URL of that cluster"}
	case len(c.Etcd) == 0 && inBucket:
		return &Error{Place: c.Place("bucket"), Seen: "no --etcd", Want: "--etcd URL[,URL] of that cluster; without both, the varve dev of --data is meant"}
	}
	return c.checkStatus()
}

// checkInspect finds out whether one thing is meant.
func (c *Config) checkInspect() error {
	if len(c.Etcd) > 0 && c.Bucket != (bucket.URL{}) {
		return &Error{Place: "--bucket", Seen: "--etcd too", Want: "one of them, or neither for a local file"}
	}
	return nil
}

// defaultOf is the place of a setting that is not set.
func defaultOf(name string) string { return "default of --" + name }

// wanted describes a setting that is missing, and where it can stand.
func (r *Reader) wanted(s *setting) string {
	usage := strings.ReplaceAll(s.usage, "`", "")
	if r.command != Agent {
		return fmt.Sprintf("%s (or %s)", usage, s.env())
	}
	return fmt.Sprintf("%s (or %s, or %s in the file of --%s)", usage, s.env(), s.name, configName)
}

// shownBytesMax bounds how much of a value a message repeats.
const shownBytesMax = 120

// quote shows a value in one line, shortened, and without what may be a secret: the user of a URL.
func quote(value string) string {
	if scheme, rest, ok := strings.Cut(value, "://"); ok {
		if at := strings.LastIndexByte(rest, '@'); at >= 0 {
			value = scheme + "://...@" + rest[at+1:]
		}
	}
	if len(value) > shownBytesMax {
		value = value[:shownBytesMax] + "..."
	}
	return strconv.Quote(value)
}

// oneLine makes an error's message a single line.
func oneLine(err error) error {
	if !strings.ContainsAny(err.Error(), "\r\n") {
		return err
	}
	return errors.New(strings.Join(strings.Fields(err.Error()), " "))
}
