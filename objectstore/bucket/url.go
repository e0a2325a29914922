package bucket

import (
	"fmt"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/varve-io/varve/objectstore"
)

// Scheme is the kind of a store.
type Scheme string

// Schemes that Parse knows.
const (
	S3    Scheme = "s3"
	MinIO Scheme = "minio"
	File  Scheme = "file"
	Mem   Scheme = "mem"
)

// URL is a parsed bucket URL. Fields that the scheme does not have are empty.
type URL struct {
	Scheme   Scheme
	Bucket   string // s3, minio
	Prefix   string // s3, minio: of all names, without a slash at its end; empty for the whole bucket
	Region   string // s3: empty to take it from AWS's own configuration
	Endpoint string // s3: URL of a server that is not AWS; empty for AWS
	Host     string // minio: host:port or host
	Secure   bool   // minio: speak TLS, which is the default
	Folder   string // file: absolute path
}

// URLError says what is wrong with a bucket URL.
type URLError struct {
	URL   string // without user and parameters, where people may have put a secret
	Place string // the part of the URL that is wrong
	Seen  string
	Want  string
}

// Error implements error, in one line.
func (e *URLError) Error() string {
	return fmt.Sprintf("bucket URL %q: %s: seen %q, want %s", e.URL, e.Place, e.Seen, e.Want)
}

const (
	wantURL         = "s3://bucket/prefix?region=&endpoint=, minio://host:port/bucket/prefix?secure=, file:///folder or mem://"
	wantPrefix      = "parts of letters, digits and ._=- between single slashes"
	prefixBytesMax  = 400 // S3's limit is 1,024 bytes, of which names take up to 512
	wantBucketShort = "3 to 63 lower-case letters, digits, dots and hyphens"
)

var bucketPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)

// Parse reads a bucket URL (see the package's comment). Every error is a [*URLError].
func Parse(raw string) (URL, error) {
	u, err := url.Parse(raw)
	if err != nil {
		// The library's message repeats the URL, and it may hold a secret.
		return URL{}, &URLError{URL: scheme(raw), Place: "URL", Seen: scheme(raw), Want: "a valid URL: " + wantURL}
	}
	p := parser{u: u, shown: (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()}
	switch {
	case u.User != nil:
		return URL{}, p.fail("user", "user@", "none: credentials come from the environment")
	case u.Fragment != "":
		return URL{}, p.fail("fragment", "#"+u.Fragment, "none")
	case u.Opaque != "":
		return URL{}, p.fail("URL", "no // after "+u.Scheme+":", wantURL)
	}
	switch Scheme(u.Scheme) {
	case S3:
		return p.s3()
	case MinIO:
		return p.minio()
	case File:
		return p.file()
	case Mem:
		return p.mem()
	default:
		return URL{}, p.fail("scheme", u.Scheme, wantURL)
	}
}

// scheme returns what stands before "://", or "?" if nothing does.
func scheme(raw string) string {
	if before, _, ok := strings.Cut(raw, "://"); ok {
		return before + "://"
	}
	return "?"
}

// parser reads one URL.
type parser struct {
	u     *url.URL
	shown string
}

func (p *parser) fail(place, seen, want string) error {
	return &URLError{URL: p.shown, Place: place, Seen: seen, Want: want}
}

func (p *parser) s3() (URL, error) {
	out := URL{Scheme: S3, Bucket: p.u.Host}
	if err := p.bucket(out.Bucket); err != nil {
		return URL{}, err
	}
	var err error
	if out.Prefix, err = p.prefix(p.u.Path); err != nil {
		return URL{}, err
	}
	params, err := p.params("region", "endpoint")
	if err != nil {
		return URL{}, err
	}
	out.Region, out.Endpoint = params["region"], strings.TrimSuffix(params["endpoint"], "/")
	if out.Endpoint != "" {
		e, err := url.Parse(out.Endpoint)
		if err != nil || e.Scheme != "http" && e.Scheme != "https" || e.Host == "" || e.Path != "" || e.RawQuery != "" || e.User != nil {
			return URL{}, p.fail("endpoint", params["endpoint"], "http://host:port or https://host:port")
		}
	}
	return out, nil
}

func (p *parser) minio() (URL, error) {
	out := URL{Scheme: MinIO, Host: p.u.Host, Secure: true}
	if p.u.Hostname() == "" {
		return URL{}, p.fail("host", p.u.Host, "host:port")
	}
	bucket, prefix, _ := strings.Cut(strings.TrimPrefix(p.u.Path, "/"), "/")
	out.Bucket = bucket
	if err := p.bucket(bucket); err != nil {
		return URL{}, err
	}
	var err error
	if out.Prefix, err = p.prefix(prefix); err != nil {
		return URL{}, err
	}
	params, err := p.params("secure")
	if err != nil {
		return URL{}, err
	}
	switch params["secure"] {
	case "", "true":
	case "false":
		out.Secure = false
	default:
		return URL{}, p.fail("secure", params["secure"], "true or false")
	}
	return out, nil
}

func (p *parser) file() (URL, error) {
	if p.u.Host != "" {
		return URL{}, p.fail("host", p.u.Host, "none: file:///folder, with three slashes and an absolute path")
	}
	if !filepath.IsAbs(p.u.Path) || strings.ContainsRune(p.u.Path, 0) {
		return URL{}, p.fail("folder", p.u.Path, "an absolute path: file:///folder")
	}
	if _, err := p.params(); err != nil {
		return URL{}, err
	}
	return URL{Scheme: File, Folder: filepath.Clean(p.u.Path)}, nil
}

func (p *parser) mem() (URL, error) {
	if p.u.Host != "" || p.u.Path != "" {
		return URL{}, p.fail("path", p.u.Host+p.u.Path, "none: mem://")
	}
	if _, err := p.params(); err != nil {
		return URL{}, err
	}
	return URL{Scheme: Mem}, nil
}

func (p *parser) bucket(name string) error {
	if !bucketPattern.MatchString(name) {
		return p.fail("bucket", name, wantBucketShort)
	}
	return nil
}

func (p *parser) prefix(path string) (string, error) {
	prefix := strings.TrimSuffix(strings.TrimPrefix(path, "/"), "/")
	if prefix == "" {
		return "", nil
	}
	if len(prefix) > prefixBytesMax || !objectstore.ValidName(prefix) {
		return "", p.fail("prefix", prefix, fmt.Sprintf("%s, at most %d bytes", wantPrefix, prefixBytesMax))
	}
	return prefix, nil
}

// params returns the URL's parameters, of which only the allowed may be there, each once.
func (p *parser) params(allowed ...string) (map[string]string, error) {
	want := "none"
	if len(allowed) > 0 {
		want = strings.Join(allowed, " or ")
	}
	values, err := url.ParseQuery(p.u.RawQuery)
	if err != nil {
		return nil, p.fail("parameters", p.u.RawQuery, "name=value&name=value")
	}
	params := make(map[string]string, len(values))
	names := make([]string, 0, len(values))
	for name := range values {
		names = append(names, name)
	}
	slices.Sort(names) // the same message every time
	for _, name := range names {
		if !slices.Contains(allowed, name) {
			return nil, p.fail("parameter", name, want)
		}
		if len(values[name]) > 1 {
			return nil, p.fail("parameter "+name, strings.Join(values[name], ", "), "it once")
		}
		params[name] = values[name][0]
	}
	return params, nil
}
