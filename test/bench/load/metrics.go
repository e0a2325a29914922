package load

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// The counters of the broker that the run reads, in Prometheus' text format.
const (
	metricRequests = "varve_objectstore_requests_total"
	metricPutBytes = "varve_objectstore_put_bytes_total"

	metricsTimeout  = 5 * time.Second
	metricsBytesMax = 16 << 20
)

// ObjectRequests counts what a broker asked of its object store.
type ObjectRequests struct {
	Puts     float64 `json:"puts"`
	PutBytes float64 `json:"put_bytes"`
	// Others are all requests but PUTs: GET, HEAD, LIST, DELETE.
	Others float64 `json:"others"`
}

// Minus returns what was asked between an earlier reading and this one.
func (o ObjectRequests) Minus(before ObjectRequests) ObjectRequests {
	return ObjectRequests{
		Puts:     o.Puts - before.Puts,
		PutBytes: o.PutBytes - before.PutBytes,
		Others:   o.Others - before.Others,
	}
}

// ReadObjectRequests reads a broker's counters, as they are since its start. It
// returns nil when there are none: no address, no answer, or a broker that
// counts nothing of the kind.
func ReadObjectRequests(ctx context.Context, url string) *ObjectRequests {
	if url == "" {
		return nil
	}
	page, err := readMetrics(ctx, url)
	if err != nil {
		return nil
	}
	return parseObjectRequests(bytes.NewReader(page))
}

// ReadMetric reads one value without labels of a server's metrics page.
func ReadMetric(ctx context.Context, url, name string) (float64, error) {
	page, err := readMetrics(ctx, url)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(page)) {
		if found, labels, value, ok := parseSample(strings.TrimSpace(line)); ok && found == name && labels == "" {
			return value, nil
		}
	}
	return 0, fmt.Errorf("read metrics of %s: there is no %s", url, name)
}

// readMetrics fetches a metrics page.
func readMetrics(ctx context.Context, url string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, metricsTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("read metrics of %s: %w", url, err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, fmt.Errorf("read metrics: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("read metrics of %s: %s", url, response.Status)
	}
	page, err := io.ReadAll(io.LimitReader(response.Body, metricsBytesMax))
	if err != nil {
		return nil, fmt.Errorf("read metrics of %s: %w", url, err)
	}
	return page, nil
}

// parseObjectRequests sums the counters over all their labels but op.
func parseObjectRequests(text io.Reader) *ObjectRequests {
	var counted ObjectRequests
	found := false
	lines := bufio.NewScanner(text)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		name, labels, value, ok := parseSample(lines.Text())
		if !ok {
			continue
		}
		switch {
		case name == metricPutBytes:
			counted.PutBytes += value
		case name == metricRequests && strings.Contains(labels, `op="put"`):
			counted.Puts += value
		case name == metricRequests:
			counted.Others += value
		default:
			continue
		}
		found = true
	}
	if !found {
		return nil
	}
	return &counted
}

// parseSample splits `name{labels} value`; the labels may be absent. Comments
// and what does not look like a sample are not ok.
func parseSample(line string) (name, labels string, value float64, ok bool) {
	if line == "" || line[0] == '#' {
		return "", "", 0, false
	}
	name, rest, found := strings.Cut(line, " ")
	if open := strings.IndexByte(line, '{'); open >= 0 {
		end := strings.LastIndexByte(line, '}')
		if end < open {
			return "", "", 0, false
		}
		name, labels, rest, found = line[:open], line[open+1:end], line[end+1:], true
	}
	fields := strings.Fields(rest)
	if !found || len(fields) == 0 {
		return "", "", 0, false
	}
	value, err := strconv.ParseFloat(fields[0], 64)
	return name, labels, value, err == nil
}
