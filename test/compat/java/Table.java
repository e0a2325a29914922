import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.HashMap;
import java.util.Map;
import java.util.TreeMap;
import java.util.stream.Collectors;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.StoreQueryParameters;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.TimeWindows;
import org.apache.kafka.streams.kstream.Windowed;
import org.apache.kafka.streams.state.KeyValueIterator;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.QueryableStoreTypes;
import org.apache.kafka.streams.state.WindowStore;

/**
 * A Kafka Streams application that keeps a topic as a table, and counts the changes of each key in windows. Both stores have
 * a changelog, of the policies compact, and compact and delete. It prints its states, and what it has whenever standard input
 * has a line; it closes when that ends.
 */
public final class Table {
    // What lets brokers compact at once.
    private static final Map<String, String> COMPACTION =
        Map.of("min.cleanable.dirty.ratio", "0", "segment.ms", "1000", "delete.retention.ms", "0");

    public static void main(String[] args) throws Exception {
        Map<String, String> flags = new HashMap<>();
        for (int i = 0; i < args.length; i += 2) {
            flags.put(args[i], args[i + 1]);
        }
        PrintStream out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        KafkaStreams streams = new KafkaStreams(topology(flags.get("--topic")).build(), WordCount.config(flags));
        streams.setStateListener((now, before) -> out.println("state\t" + now));
        streams.setUncaughtExceptionHandler(e -> {
            e.printStackTrace();
            out.println("error\t" + e);
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
        streams.start();
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        while (in.readLine() != null) {
            out.println("table\t" + table(streams));
        }
        if (!streams.close(Duration.ofSeconds(30))) {
            throw new IllegalStateException("did not close in time");
        }
    }

    private static StreamsBuilder topology(String in) {
        StreamsBuilder builder = new StreamsBuilder();
        builder.table(in, Materialized.<String, String, KeyValueStore<Bytes, byte[]>>as("values").withLoggingEnabled(COMPACTION))
            .toStream()
            .groupByKey()
            .windowedBy(TimeWindows.ofSizeWithNoGrace(Duration.ofHours(1)))
            .count(Materialized.<String, Long, WindowStore<Bytes, byte[]>>as("changes")
                .withKeySerde(Serdes.String()).withRetention(Duration.ofDays(1)).withLoggingEnabled(COMPACTION));
        return builder;
    }

    /** All keys, as KEY=VALUE:CHANGES, in order; the value of a key that was deleted is empty. */
    private static String table(KafkaStreams streams) {
        Map<String, String> values = new HashMap<>();
        TreeMap<String, Long> changes = new TreeMap<>();
        try (KeyValueIterator<String, String> all = streams.store(
            StoreQueryParameters.fromNameAndType("values", QueryableStoreTypes.<String, String>keyValueStore())).all()) {
            all.forEachRemaining(each -> values.put(each.key, each.value));
        }
        try (KeyValueIterator<Windowed<String>, Long> all = streams.store(
            StoreQueryParameters.fromNameAndType("changes", QueryableStoreTypes.<String, Long>windowStore())).all()) {
            while (all.hasNext()) {
                KeyValue<Windowed<String>, Long> each = all.next();
                changes.merge(each.key.key(), each.value, Long::sum);
            }
        }
        return changes.entrySet().stream()
            .map(each -> each.getKey() + "=" + values.getOrDefault(each.getKey(), "") + ":" + each.getValue())
            .collect(Collectors.joining(" "));
    }
}
