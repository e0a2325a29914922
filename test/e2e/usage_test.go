package e2e_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestBadUsage: whatever has to be changed by whoever started the process ends it with status 2 and one line that names
// the place.
func TestBadUsage(t *testing.T) {
	folder := t.TempDir()
	file := filepath.Join(folder, "varve.yaml")
	if err := os.WriteFile(file, []byte("bucket: mem://\netcd: http://127.0.0.1:1\nlissen: 127.0.0.1:9092\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	used, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer used.Close()
	agent := []string{"agent", "--etcd", "http://127.0.0.1:1", "--bucket", "mem://"}
	tests := []struct {
		args, env []string
		want      string
	}{
		{[]string{"frobnicate"}, nil, `varve: varve: seen "frobnicate", want a command: agent, bench, cost, dev`},
		{[]string{"dev", "extra"}, nil, `varve: varve dev: seen "extra", want flags only`},
		{[]string{"dev", "--lissen", "x"}, nil, "varve: --lissen: seen an unknown flag, want a flag that varve dev --help lists"},
		{[]string{"dev", "-x"}, nil, "varve: -x: seen an unknown flag"},
		{[]string{"dev", "--listen"}, nil, "varve: --listen: seen no value"},
		{[]string{"dev", "--listen", "9092"}, nil, `varve: --listen: seen "9092", want host:port`},
		{[]string{"dev"}, []string{"VARVE_LISTEN=9092"}, `varve: VARVE_LISTEN: seen "9092", want host:port`},
		{[]string{"dev", "--listen", "0.0.0.0:0"}, nil, `varve: --listen: seen "0.0.0.0:0" without --advertise`},
		{[]string{"dev", "--listen", used.Addr().String()}, nil, "varve: --listen: seen \"" + used.Addr().String() + "\", want an address of this machine that is free"},
		{[]string{"dev", "--listen", "127.0.0.1:0", "--http", "192.0.2.1:1"}, nil, `varve: --http: seen "192.0.2.1:1", want an address of this machine`},
		{[]string{"dev", "--agents", "2", "--listen", "127.0.0.1:65535"}, nil, "varve: --agents: seen 2 from port 65535, want a port of --listen"},
		{[]string{"dev", "--data", file}, nil, `varve: --data: seen "` + file + `", want a folder to write to`},
		{[]string{"bench", "--duration", "long"}, nil, `varve: --duration: seen "long", want duration`},
		{[]string{"status"}, nil, `varve: default of --data: seen "./varve-data", want the folder of a varve dev that runs, or --etcd`},
		{[]string{"status", "--cluster", "prod"}, nil, `varve: --cluster: seen "prod" without --etcd`},
		{[]string{"cost", "--prices", file}, nil, `varve: --prices: seen "` + file + `", want a file of prices like deploy/prices.yaml (no currency)`},
		{[]string{"cost", "--etcd", "http://127.0.0.1:1"}, nil, "varve: --etcd: seen no --bucket, want --bucket URL"},
		{[]string{"bench", "now"}, nil, `varve: varve bench: seen "now"`},
		{[]string{"agent"}, nil, "varve: --etcd: seen none, want etcd's members"},
		{agent[:3], nil, "varve: --bucket: seen none, want object store"},
		{[]string{"restore"}, nil, "varve: --etcd: seen none, want etcd's members"},
		{append(agent, "--bucket", "gs://lake"), nil, `varve: --bucket: bucket URL "gs://lake": scheme: seen "gs", want s3://`},
		{agent[:3], []string{"VARVE_BUCKET=s3://"}, `varve: VARVE_BUCKET: bucket URL "s3:": bucket: seen ""`},
		{append(agent, "--etcd", "127.0.0.1:2379"), nil, `varve: --etcd: seen "127.0.0.1:2379", want URL[,URL]`},
		{append(agent, "--cluster", "a/b"), nil, `varve: --cluster: seen "a/b"`},
		{append(agent, "--config", file), nil, "varve: " + file + `:3:1: seen unknown key "lissen", want one of etcd, bucket`},
		{agent, nil, "varve: default of --wal-copies: seen 3 without --peer-listen, want --peer-listen host:port"},
		{append(agent, "--peer-listen", "0.0.0.0:0"), nil, `varve: --peer-listen: seen "0.0.0.0:0" without --peer-advertise`},
		{append(agent, "--wal-copies", "1", "--peer-tls", folder, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data", folder), nil, `varve: --peer-tls: seen "` + folder + `", want a folder with ca.pem`},
		{append(agent, "--config", file+"x"), nil, "varve: --config: open " + file + "x: no such file"},
		{agent, []string{"VARVE_CONFIG=" + folder}, "varve: VARVE_CONFIG: read " + folder + ": is a directory"},
	}
	for _, test := range tests {
		t.Run(strings.Join(append(test.env, test.args...), " "), func(t *testing.T) {
			p := start(t, test.env, test.args...)
			if status := p.status(t); status != 2 {
				t.Errorf("exit status %d, want 2", status)
			}
			said := p.stderr.String()
			if !strings.HasPrefix(said, test.want) || strings.Count(said, "\n") != 1 || !strings.HasSuffix(said, "\n") {
				t.Errorf("standard error %q, want one line that begins with %q", said, test.want)
			}
			if p.stdout.String() != "" {
				t.Errorf("standard output %q, want none", p.stdout)
			}
		})
	}
}

func TestHelp(t *testing.T) {
	tests := []struct {
		args []string
		want string
	}{
		{nil, "Available Commands"},
		{[]string{"--help"}, "Available Commands"},
		{[]string{"dev", "--help"}, "--wal-sync"},
		{[]string{"agent", "--help"}, "--wal-copies"},
		{[]string{"status", "--help"}, "--json"},
		{[]string{"bench", "--help"}, "--record-bytes"},
		{[]string{"restore", "--help"}, "--repair"},
		{[]string{"version"}, "varve "},
	}
	for _, test := range tests {
		p := start(t, nil, test.args...)
		if status := p.status(t); status != 0 {
			t.Errorf("varve %v: exit status %d, want 0", test.args, status)
		}
		if !strings.Contains(p.stdout.String(), test.want) || p.stderr.String() != "" {
			t.Errorf("varve %v: standard output %q and standard error %q, want %q and nothing", test.args, p.stdout, p.stderr, test.want)
		}
	}
}
