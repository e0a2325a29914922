package manifest

import (
	"math"
	"strings"
	"testing"

	"github.com/varve-io/varve/protocol"
)

// TestEncodeRefuses damages the example in each way that a merge might. What Encode refuses, Parse refuses with the same check.
func TestEncodeRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		damage func(m *Manifest, p *Partition)
		want   string // in the error
	}{
		"negative epoch":      {func(m *Manifest, _ *Partition) { m.Epoch = -1 }, "epoch -1"},
		"too many segments":   {func(m *Manifest, _ *Partition) { m.Segments = make([]Segment, SegmentsMax+1) }, "at most"},
		"too many partitions": {func(m *Manifest, _ *Partition) { m.Partitions = make([]Partition, PartitionsMax+1) }, "at most"},
		"too many producers": {func(_ *Manifest, p *Partition) {
			p.Producers = make([]Producer, ProducersMax+1)
			for i := range p.Producers {
				p.Producers[i].ID = protocol.ProducerID(i)
			}
		}, "at most"},

		"segments out of order":    {func(m *Manifest, _ *Partition) { m.Segments[1].Number = 6 }, "out of order"},
		"segment twice":            {func(m *Manifest, _ *Partition) { m.Segments[1].Number = 7 }, "out of order"},
		"segment's epoch falls":    {func(m *Manifest, _ *Partition) { m.Segments[2].Epoch = 2 }, "out of order"},
		"segment's epoch negative": {func(m *Manifest, _ *Partition) { m.Segments[0].Epoch = -1 }, "epoch -1"},
		"segment without data":     {func(m *Manifest, _ *Partition) { m.Segments[0].FooterPos = 80 }, "footer at byte 80"},
		"segment without footer":   {func(m *Manifest, _ *Partition) { m.Segments[1].FooterPos = 5000 }, "footer at byte 5000"},
		"segment without extent":   {func(_ *Manifest, p *Partition) { p.Extents = p.Extents[:2] }, "00000003-0000000000000008 has no extent"},

		"partitions out of order": {func(m *Manifest, _ *Partition) { m.Partitions[0].Partition = 7 }, "out of order"},
		"partition twice":         {func(m *Manifest, _ *Partition) { m.Partitions[0].Partition = 6 }, "out of order"},
		"topics out of order":     {func(m *Manifest, _ *Partition) { m.Partitions[3].Topic = topicA }, "out of order"},
		"bad name":                {func(m *Manifest, _ *Partition) { m.Partitions[0].TopicName = "no/name" }, "no/name"},
		"empty name":              {func(m *Manifest, _ *Partition) { m.Partitions[0].TopicName = "" }, "topic"},
		"long name":               {func(m *Manifest, _ *Partition) { m.Partitions[0].TopicName = strings.Repeat("a", 250) }, "topic"},
		"two names":               {func(_ *Manifest, p *Partition) { p.TopicName = "other" }, `is "events" too`},
		"negative partition":      {func(m *Manifest, _ *Partition) { m.Partitions[0].Partition = -1 }, "partition -1"},
		"negative log start":      {func(m *Manifest, _ *Partition) { m.Partitions[0].LogStartOffset = -1 }, "log start offset -1"},
		"negative end":            {func(m *Manifest, _ *Partition) { m.Partitions[0].End = -1 }, "end -1"},
		"negative last stable":    {func(_ *Manifest, p *Partition) { p.LastStable = -1 }, "last stable offset -1"},
		"last stable past end":    {func(_ *Manifest, p *Partition) { p.LastStable = 901 }, "last stable offset 901"},
		"negative cleaned":        {func(_ *Manifest, p *Partition) { p.Cleaned = -1 }, "cleaned up to -1"},
		"cleaned past end":        {func(_ *Manifest, p *Partition) { p.Cleaned = 901 }, "cleaned up to 901"},

		"epochs out of order": {func(_ *Manifest, p *Partition) { p.Epochs[1].Epoch = 1 }, "epoch 1 from 512"},
		"epochs at one start": {func(_ *Manifest, p *Partition) { p.Epochs[1].Start = 0 }, "epoch 4 from 0"},
		"epoch at end":        {func(_ *Manifest, p *Partition) { p.Epochs[2].Start = 900 }, "epoch 9 from 900"},
		"epoch's start":       {func(_ *Manifest, p *Partition) { p.Epochs[0].Start = -1 }, "epoch 1 from -1"},
		"epoch negative":      {func(_ *Manifest, p *Partition) { p.Epochs[0].Epoch = -1 }, "epoch -1 from 0"},
		"epoch without end":   {func(m *Manifest, _ *Partition) { m.Partitions[0].Epochs = []EpochStart{{1, 0}} }, "epoch 1 from 0"},

		"extents overlap":       {func(_ *Manifest, p *Partition) { p.Extents[1].First = 99 }, "extent [99, 400)"},
		"extent negative":       {func(_ *Manifest, p *Partition) { p.Extents[0].First = -1 }, "extent [-1, 100)"},
		"extent empty":          {func(_ *Manifest, p *Partition) { p.Extents[0].Next = 10 }, "extent [10, 10)"},
		"extent past end":       {func(_ *Manifest, p *Partition) { p.Extents[2].Next = 901 }, "extent [401, 901)"},
		"extent's epoch falls":  {func(_ *Manifest, p *Partition) { p.Extents[1].Epoch = 0 }, "extent [100, 400) of epoch 0"},
		"extent in no segment":  {func(_ *Manifest, p *Partition) { p.Extents[2].Segment = 3 }, "in segment 3 of 3"},
		"extent in segment -1":  {func(_ *Manifest, p *Partition) { p.Extents[2].Segment = -1 }, "in segment -1 of 3"},
		"extent in the header":  {func(_ *Manifest, p *Partition) { p.Extents[0].Pos = 79 }, "want within 80"},
		"extent in the footer":  {func(_ *Manifest, p *Partition) { p.Extents[2].Size = 3911 }, "want within 80 to 4000"},
		"extent past the data":  {func(_ *Manifest, p *Partition) { p.Extents[2].Pos = math.MaxInt64 }, "want within 80 to 4000"},
		"extent of no bytes":    {func(_ *Manifest, p *Partition) { p.Extents[1].Size = 0 }, "of 0 bytes"},
		"extents of same bytes": {func(_ *Manifest, p *Partition) { p.Extents[0].Size = 1001 }, "want within 1081"},

		"producers out of order":  {func(_ *Manifest, p *Partition) { p.Producers[1].ID = 0 }, "producer 0 after 0"},
		"producer negative":       {func(_ *Manifest, p *Partition) { p.Producers[0].ID = -1 }, "producer -1 after -1"},
		"transaction at end":      {func(_ *Manifest, p *Partition) { p.Producers[1].TxnFirst = 900 }, "transaction from 900"},
		"transaction at -2":       {func(_ *Manifest, p *Partition) { p.Producers[1].TxnFirst = -2 }, "transaction from -2"},
		"too many batches":        {func(_ *Manifest, p *Partition) { p.Producers[0].Batches = make([]ProducerBatch, BatchesMax+1) }, "6 batches"},
		"batch of no records":     {func(_ *Manifest, p *Partition) { p.Producers[0].Batches[4].Records = 0 }, "batch of 0 records"},
		"batch past end":          {func(_ *Manifest, p *Partition) { p.Producers[0].Batches[4].Records = 2 }, "batch of 2 records"},
		"batch longer than all":   {func(_ *Manifest, p *Partition) { p.Producers[0].Batches[0].Records = math.MaxInt32 }, "want from 0 to 900"},
		"batch's sequence":        {func(_ *Manifest, p *Partition) { p.Producers[0].Batches[4].BaseSequence = -1 }, "at sequence -1"},
		"batch's offset":          {func(_ *Manifest, p *Partition) { p.Producers[0].Batches[0].BaseOffset = -1 }, "offset -1"},
		"batches overlap":         {func(_ *Manifest, p *Partition) { p.Producers[0].Batches[1].Records = 10 }, "want from 21"},
		"producer without record": {func(m *Manifest, p *Partition) { m.Partitions[0].Producers = p.Producers[2:] }, "1 producers without records"},
	} {
		m := example()
		test.damage(m, &m.Partitions[1])
		if _, err := m.Encode(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q in it", name, err, test.want)
		}
	}
}

// TestEncodeStopsAtLimit holds that a manifest within all counts but too long is not written.
func TestEncodeStopsAtLimit(t *testing.T) {
	m := &Manifest{Partitions: make([]Partition, BytesMax/260)}
	for i := range m.Partitions {
		m.Partitions[i] = Partition{Topic: protocol.TopicID{byte(i >> 16), byte(i >> 8), byte(i)}, TopicName: strings.Repeat("a", 249)}
	}
	if _, err := m.Encode(); err == nil || !strings.Contains(err.Error(), "more than 67108864 bytes") {
		t.Errorf("%v, want an error about the bytes", err)
	}
}
